# minGRU on the characters of Shakespeare, as "Were RNNs All We Needed?" has it (App. C): 6,263,040 parameters.
# Not stated there and chosen here: RMSNorm, and nanoGPT's context, warm-up, schedule, weight decay and beta2.
# Any GPU will do: it takes 1.0 GiB.

corpus = "shakespeare"  # python data.py shakespeare
vocab_size = 65

mixer = "mingru"
n_layer = 3
d_model = 384
d_mlp = 1536
expand = 2
context = 256
dropout = 0.2
mlp = "gelu"
conv = 4

batch_size = 64  # 64 x 256 = 16k characters a step
max_steps = 5000
learning_rate = 1e-3
min_lr = 1e-4
warmup = 100
beta2 = 0.99
grad_clip = 0.25

eval_every = 25  # the best is expected before step 1,000
save_every = 250
