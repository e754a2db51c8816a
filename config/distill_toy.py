# A small student of config/toy.py's model, on the same text, in minutes on a laptop's CPU:
#     python train.py; python distill.py
# and, to compare, the student without a teacher: python distill.py --alpha=0 --run=alone

base = "toy.py"
teacher = "out/toy"
alpha = 0.5
temperature = 1.0

n_layer = 2  # a quarter of the teacher's parameters
d_model = 64
n_head = 1
d_mlp = 176
