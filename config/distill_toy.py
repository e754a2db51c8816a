# A small student of config/toy.py's model, on the same text, in minutes of a laptop's CPU:
#     python train.py; python distill.py
# and, to compare, the same student without: python distill.py --alpha=0 --run=alone

teacher = "out/toy"
alpha = 0.5
temperature = 1.0

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 2  # a quarter of the teacher's parameters
d_model = 64
n_head = 1
d_mlp = 176
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 600
learning_rate = 4e-3
warmup = 50
weight_decay = 0.1

eval_every = 60
eval_pairs = "toyland"
