# The learning rate of each model of babyhgrn_mixers.py, and so of babyhgrn_small.py: three each, 400 steps, one
# seed, and the lowest validation loss. Run for all but xLSTM so far.

base = "babyhgrn_mixers.py"

max_steps = 400
muon_times = 1.0
learning_rates = [1e-2, 2e-2, 4e-2]

eval_every = 400
eval_pairs = ""
tasks = ""
beside = ""
against = ""
