# BabyHGRN's HGRN2 on BabyLM strict, 100M words (Table 4): 366,846,976 parameters, as hgrn2_10m and by its recipe.
# Not stated in the paper and chosen here: warm-up, weight decay, Adam's betas (PyTorch's defaults).

corpus = "babylm-100m"

mixer = "hgrn2"
n_layer = 26
d_model = 1024
n_head = 8  # heads of 128, the paper's expand ratio
d_mlp = 2816
context = 512

batch_size = 64  # 64 x 512 = 32k tokens a step
epochs = 5  # the best of five by validation
optimizer = "adam"
learning_rate = 1e-3
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
