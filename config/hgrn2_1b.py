# BabyHGRN's largest HGRN2, without a teacher, on 10M words of the Pile (Table 5): 990,529,536 parameters, "1.0B".
# Not stated and chosen here: epochs (Table 3 says 3, the text 5), warm-up, weight decay, Adam's betas.
# GPUs: one of 80 GB takes 46 GiB; with --accumulate=4, one of 48 GB takes 31 GiB, each of two 25 GiB, and one of
# 24 GB with --checkpoint_activations, too, 17 GiB.

base = "hgrn2_10m.py"
corpus = "pile-10m"

n_layer = 18
d_model = 2048
n_head = 16  # heads of 128, the paper's expand ratio
d_mlp = 5632

accumulate = 2
learning_rate = 4e-4
