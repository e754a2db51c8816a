# BabyHGRN's Mamba on BabyLM strict-small, 10M words (appendix B): 350,438,400 parameters, "350M" there. As in
# Mamba's own code, with tie_embeddings = True, they are 334,054,400. The same recipe as hgrn2_10m.

corpus = "babylm-10m"

mixer = "mamba"
mlp = "none"  # a Mamba block is both
n_layer = 48
d_model = 1024
expand = 2
d_state = 8
norm_eps = 1e-5
context = 512

batch_size = 64
epochs = 5
optimizer = "adam"
learning_rate = 1e-3
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
