# What Muon, and documents kept apart, change on toyland: five seeds each, against config/toy.py's recipe.

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 3
d_model = 128
n_head = 2
d_mlp = 352
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 300
learning_rate = 4e-3
warmup = 50

eval_every = 50
eval_pairs = "toyland"
seeds = [0, 1, 2, 3, 4]
against = "plain"

models = {
    "plain": {},
    "Muon": {"optimizer": "muon", "learning_rates": [2e-2]},
    "documents apart": {"documents": "apart"},
}
