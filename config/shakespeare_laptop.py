# minGRU on the characters of Shakespeare, small enough for a laptop: 711,424 parameters, with the recipe of
# mingru_shakespeare.py. Estimated from short runs: 15 to 20 minutes on two cores; not run to its end.

base = "mingru_shakespeare.py"
d_model = 128
d_mlp = 512
batch_size = 16  # 16 x 256 = 4k characters a step
eval_every = 250
