# The learning rate of each model of babyhgrn_mixers.py, for Muon and AdamW alike: three each, 400 steps, one seed.

base = "babyhgrn_mixers.py"

max_steps = 400
learning_rates = [1e-2, 2e-2, 4e-2]

eval_every = 400
eval_pairs = ""
tasks = ""
beside = ""
against = ""
