# HGRN2 on toyland, a small made-up English: minutes on a laptop's CPU, the default job.

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 3
d_model = 128
n_head = 2
d_mlp = 352
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 600
learning_rate = 4e-3
warmup = 50
weight_decay = 0.1

eval_every = 60
eval_pairs = "toyland"
