# Mamba on the characters of Shakespeare, as "Were RNNs All We Needed?" has it (App. C): 2,942,976 parameters.
# Not stated there and chosen here: Mamba's own layout, without an MLP, and all that mingru_shakespeare chooses.

corpus = "shakespeare"  # python data.py shakespeare
vocab_size = 65

mixer = "mamba"
mlp = "none"  # a Mamba block is both
n_layer = 3
d_model = 384
expand = 2
d_state = 16
norm_eps = 1e-5
context = 256
dropout = 0.2

batch_size = 64  # 64 x 256 = 16k characters a step
max_steps = 5000
learning_rate = 1e-3
min_lr = 1e-4
warmup = 100
beta2 = 0.99
grad_clip = 0.25

eval_every = 25  # the best is expected before step 1,000
save_every = 250
