# What Muon, and documents kept apart, change on toyland: five seeds each, against AdamW at its best learning
# rate and documents that run on into each other.

base = "toy.py"

optimizer = "adamw"
learning_rate = 4e-3

eval_every = 50
seeds = [0, 1, 2, 3, 4]
against = "plain"

models = {
    "plain": {},
    "Muon": {"optimizer": "muon", "learning_rates": [2e-2]},
    "documents apart": {"documents": "apart"},
}
