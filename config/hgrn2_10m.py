# BabyHGRN's HGRN2 on BabyLM strict-small, 10M words (Table 3, appendix B): 366,846,976 parameters, "360M" there.
# Not stated in the paper and chosen here: warm-up, weight decay, Adam's betas (PyTorch's defaults).
# GPUs: one of 80 GB takes 47 GiB; one of 48 GB with --accumulate=2, 27 GiB; one of 24 GB with --accumulate=4, 17
# GiB; each of four, 19 GiB.

corpus = "babylm-10m"

mixer = "hgrn2"
n_layer = 26
d_model = 1024
n_head = 8  # heads of 128, the paper's expand ratio
d_mlp = 2816
context = 512

batch_size = 64  # 64 x 512 = 32k tokens a step
epochs = 5  # best.pt is that of the lowest validation loss
eval_tokens = 1_000_000  # of the dev text, which has some ten million
optimizer = "adam"
learning_rate = 1e-3
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
