# BabyHGRN's largest HGRN2, without a teacher, on 10M words of the Pile (Table 5): 990,529,536 parameters, "1.0B".
# Not stated and chosen here: epochs (Table 3 says 3, the text 5), warm-up, weight decay, Adam's betas.

corpus = "pile-10m"

mixer = "hgrn2"
n_layer = 18
d_model = 2048
n_head = 16  # heads of 128, the paper's expand ratio
d_mlp = 5632
context = 512

batch_size = 64  # 64 x 512 = 32k tokens a step
epochs = 5  # the best of five by validation
optimizer = "adam"
learning_rate = 4e-4
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
