# HGRN2 reads ten million words of English twice, in less than 40 minutes of two CPU cores. Make the corpus first:
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
epochs = 2  # 9,091 steps
optimizer = "muon"
learning_rate = 2e-2
schedule = "linear"
warmup = 100

eval_every = 909
