# minGRU on selective copying, 16 letters out of 4096 tokens, as "Were RNNs All We Needed?" has it (App. C). Make
# the corpus first, in place of the paper's endless one; 1.6 GB, and 256 epochs:
#     python data.py copying copying_4096 --length=4096 --tokens=16
# Any GPU will do: it takes 1.4 GiB.

corpus = "copying_4096"
vocab_size = 16

mixer = "mingru"
n_layer = 3
d_model = 64
expand = 6
mlp = "none"
context = 4112  # 4096 and the markers
dropout = 0.1  # the official code has it in the MLPs alone, of which there are none here

batch_size = 64
accumulate = 2
max_steps = 400_000
optimizer = "adam"
learning_rate = 3e-4  # or 1e-4: sources differ
schedule = "constant"
weight_decay = 0.0
beta2 = 0.999

eval_every = 1000
save_every = 1000
