# HGRN2 on ten million words of real English, small enough for ten minutes of a laptop's CPU. Make the corpus first:
#     python data.py text english corpus/*.train.txt.gz --val="corpus/*.dev.txt.gz" --vocab_size=8000

corpus = "english"
vocab_size = 8000

mixer = "hgrn2"
n_layer = 4
d_model = 192
n_head = 3
d_mlp = 512
context = 128
tie_embeddings = True

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 1000
learning_rate = 3e-3
warmup = 50

eval_every = 100
