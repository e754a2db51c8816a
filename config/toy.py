# HGRN2 on toyland, a small made-up English: two minutes on a laptop's CPU, the default job.

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 3
d_model = 128
n_head = 2
d_mlp = 352
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 300
optimizer = "muon"
learning_rate = 2e-2
warmup = 50

eval_every = 30
eval_pairs = "toyland"
