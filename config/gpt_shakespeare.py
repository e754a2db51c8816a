# The Transformer of "Were RNNs All We Needed?" (App. C) on the characters of Shakespeare: 5,447,424 parameters.
# The recipe of mingru_shakespeare. Not stated and chosen here: as there, and biases, which nanoGPT leaves out.

corpus = "shakespeare"  # python data.py shakespeare
vocab_size = 65

mixer = "attention"
position = "learned"
n_layer = 3
d_model = 384
n_head = 6
d_mlp = 1536
context = 256
dropout = 0.2
norm = "layernorm"
norm_eps = 1e-5
mlp = "gelu"
tie_embeddings = True

batch_size = 64
max_steps = 5000
learning_rate = 1e-3
min_lr = 1e-4
warmup = 100
beta2 = 0.99
grad_clip = 0.25

eval_every = 25
save_every = 250
