# minGRU copies 8 letters out of 64 tokens of noise: minutes on a laptop's CPU, after "Were RNNs All We Needed?".
# --mixer=minlstm works, too. With --n_layer=1 neither does: a gate sees one token, and all markers look alike.

corpus = "copying"  # made on the spot; data.py copying --help has its sizes
vocab_size = 16

mixer = "mingru"
n_layer = 3
d_model = 64
expand = 2
mlp = "none"
context = 72  # 64 and a marker for each of 8 letters

batch_size = 32  # 3000 x 32 sequences are 0.96 epochs
max_steps = 3000
optimizer = "adam"
learning_rate = 5e-3
warmup = 100
weight_decay = 0.0
beta2 = 0.999

eval_every = 250
