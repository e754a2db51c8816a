# What Muon, and documents kept apart, change on English: three seeds each, against the plain recipe. AdamW's
# learning rate was the best of 2e-3, 4e-3, 8e-3 and 1.6e-2 after 300 steps; Muon's, 2e-2, is within 0.02 nats of
# the best of six.

base = "english_small.py"

max_steps = 400
optimizer = "adamw"
learning_rate = 8e-3
schedule = "cosine"
warmup = 50

eval_every = 50
eval_tokens = 60_000
seeds = [0, 1, 2]
tasks = "blimp_filtered"
against = "plain"

models = {
    "plain": {},
    "Muon": {"optimizer": "muon", "learning_rates": [2e-2]},
    "documents apart": {"documents": "apart"},
}
