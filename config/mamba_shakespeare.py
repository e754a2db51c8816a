# Mamba on the characters of Shakespeare, as "Were RNNs All We Needed?" has it (App. C): 2,942,976 parameters.
# Not stated there and chosen here: Mamba's own layout, without an MLP, and all that mingru_shakespeare.py chooses.
# Any GPU will do: it takes 1.4 GiB.

base = "mingru_shakespeare.py"
mixer = "mamba"
mlp = "none"  # a Mamba block is both
conv = 0  # and has a convolution of its own
d_state = 16
norm_eps = 1e-5
