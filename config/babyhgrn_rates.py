# One learning rate for Muon and AdamW alike, for each model of babyhgrn_mixers.py: three each, 400 steps, one
# seed, and the lowest validation loss. 2e-2 had it, or came within 0.012 of it, for all but xLSTM, not run so far.

base = "babyhgrn_mixers.py"

max_steps = 400
muon_times = 1.0
learning_rates = [1e-2, 2e-2, 4e-2]

eval_every = 400
eval_pairs = ""
tasks = ""
beside = ""
against = ""
