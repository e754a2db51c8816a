# BabyHGRN's Transformer on BabyLM strict-small, 10M words (appendix B): 401,912,832 parameters, "360M" there.
# The same recipe as hgrn2_10m.

corpus = "babylm-10m"

mixer = "attention"
position = "rope"
n_layer = 22
d_model = 1024
n_head = 32
d_mlp = 4096
context = 512

batch_size = 64
epochs = 5
optimizer = "adam"
learning_rate = 1e-3
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
