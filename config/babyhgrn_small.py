# BabyHGRN's question at a size for two CPU cores and a night: does HGRN2 beat a Llama of equal size on the same
# text, and does it gain from a teacher of its own size? `make babyhgrn` prepares text and benchmarks and runs
# this, then babyhgrn_mixers.py. Models of 1.8M parameters read the ten million words once, three seeds each; the
# taught students have seeds of their own, so that none begins where its teacher began. Learning rates: to be the
# best of babyhgrn_rates.py; until it has run, 2e-2, the best of HGRN2 after 300 steps. A model is judged at its
# lowest validation loss, not at its best test score. Not run to its end yet.

base = "english_small.py"

epochs = 1
max_steps = 0  # as epochs say
optimizer = "muon"
schedule = "linear"

eval_every = 455
eval_pairs = "blimp_fast"  # a fifth of BLiMP, for the curves
best_by = "loss"
save_every = 91
seeds = [0, 1, 2]
protocol = "2025"
tasks = "blimp_filtered,supplement,ewok_filtered,bear,entity_tracking"
glue = "rte,wsc,mrpc"
beside = "out/english_3gram"  # what counting gives
against = "HGRN2"

models = {
    "HGRN2": {"mixer": "hgrn2", "learning_rates": [2e-2]},
    "Llama": {"mixer": "attention", "position": "rope", "learning_rates": [2e-2]},
    "HGRN2, taught": {"mixer": "hgrn2", "teacher": "HGRN2", "seeds": [3, 4, 5], "learning_rates": [2e-2]},
    "untrained": {"mixer": "hgrn2", "max_steps": 1, "learning_rates": [0.0]},
}
