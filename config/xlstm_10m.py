# BabyHGRN's xLSTM on BabyLM strict-small, 10M words (appendix B): 338,181,456 parameters, "340M" there.
# 48 blocks, of which 3, 5, 7, 40, 42 and 44 are sLSTM, the first being 0. The same recipe as hgrn2_10m.
# One GPU of 80 GB takes 49 GiB; one of 48 GB needs --accumulate=8.

base = "hgrn2_10m.py"
mixer = (
    "mlstm mlstm mlstm slstm mlstm slstm mlstm slstm "
    "mlstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm "
    "mlstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm "
    "mlstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm "
    "mlstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm "
    "slstm mlstm slstm mlstm slstm mlstm mlstm mlstm"
)
mlp = (
    "none none none geglu none geglu none geglu "
    "none none none none none none none none "
    "none none none none none none none none "
    "none none none none none none none none "
    "none none none none none none none none "
    "geglu none geglu none geglu none none none"
)
norm = "layernorm_nobias"
norm_eps = 1e-5
n_layer = 48
n_head = 4
expand = 2  # mLSTM's width inside
d_mlp = 1344  # 1.3 x 1024, rounded up to a multiple of 64

accumulate = 4
