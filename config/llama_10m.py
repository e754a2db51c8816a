# BabyHGRN's Transformer on BabyLM strict-small, 10M words (appendix B): 401,912,832 parameters, "360M" there.
# The same recipe as hgrn2_10m. One GPU of 48 GB takes 36 GiB.

base = "hgrn2_10m.py"
mixer = "attention"
position = "rope"
n_layer = 22
n_head = 32
d_mlp = 4096
