# BabyHGRN's student on BabyLM, 100M words: config/hgrn2_100m.py from the start again, with out/hgrn2_100m to teach
# it: of the same size, on the same data. The final student of the paper is config/hgrn2_1b.py, on the Pile.
# Not stated in the paper and chosen here: alpha, and what config/hgrn2_100m.py says.

teacher = "out/hgrn2_100m/best.pt"
alpha = 0.5
temperature = 1.0

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
