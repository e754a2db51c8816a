# HGRN2 on ten million words of English, small enough for half an hour on a laptop's CPU. Make the corpus first:
#     python data.py text english corpus/*.train.txt.gz --val="corpus/*.dev.txt.gz" --vocab_size=8000

corpus = "english"
vocab_size = 8000

mixer = "hgrn2"
n_layer = 4
d_model = 128
n_head = 2
d_mlp = 352
context = 128
tie_embeddings = True

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 2400  # 9.8M tokens, half of the corpus
learning_rate = 4e-3
warmup = 100

eval_every = 200
