# BabyHGRN's question at a size for two CPU cores and a night: does HGRN2 beat a Llama of equal size on the same
# text? `make babyhgrn` prepares text and benchmarks and runs this, then babyhgrn_mixers.py and babyhgrn_taught.py.
# Models of 1.8M parameters read the ten million words once, three seeds each, with english_small's learning rate.
# A model is judged at its lowest validation loss, not at its best test score.

base = "english_small.py"

epochs = 1  # 4,546 steps
eval_every = 909  # a fifth
eval_pairs = "blimp_fast"  # a fifth of BLiMP, for the curves
best_by = "loss"
save_every = 91
seeds = [0, 1, 2]
protocol = "2025"
tasks = "blimp_filtered,supplement,ewok_filtered,bear,entity_tracking"
glue = "rte,wsc,mrpc"
beside = "out/english_3gram"  # the n-gram baseline
against = "HGRN2"

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "Llama": {"mixer": "attention", "position": "rope"},
}
