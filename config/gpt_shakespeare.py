# The Transformer of "Were RNNs All We Needed?" (App. C) on the characters of Shakespeare: 5,447,424 parameters.
# The recipe of minGRU, with what was chosen there, and biases, which the paper does not state and nanoGPT omits.
# Any GPU will do: it takes 0.9 GiB.

base = "mingru_shakespeare.py"
mixer = "attention"
position = "learned"
n_head = 6
conv = 0
norm = "layernorm"
norm_eps = 1e-5
tie_embeddings = True
