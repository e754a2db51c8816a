# What Muon, and documents kept apart, change on toyland: five seeds each, against config/toy.py's recipe. Not run
# to its end yet.

base = "toy.py"

max_steps = 300

eval_every = 50
seeds = [0, 1, 2, 3, 4]
against = "plain"

models = {
    "plain": {},
    "Muon": {"optimizer": "muon", "learning_rates": [2e-2]},
    "documents apart": {"documents": "apart"},
}
