# BabyHGRN's Mamba on BabyLM strict-small, 10M words (appendix B): 350,438,400 parameters, "350M" there. Mamba's
# own code ties the embeddings: with tie_embeddings = True they are 334,054,400. The same recipe as hgrn2_10m.
# One GPU of 80 GB takes 47 GiB; one of 48 GB needs --accumulate=4.

base = "hgrn2_10m.py"
mixer = "mamba"
mlp = "none"  # a Mamba block is both
n_layer = 48
expand = 2
d_state = 8
norm_eps = 1e-5

accumulate = 2
