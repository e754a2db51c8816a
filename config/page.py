# HGRN2 on toyland, small enough for a web page: 0.2 million parameters. The runs of results/page.html:
#     python train.py config/page.py --run=page_hgrn2
#     python train.py config/page.py --run=page_mingru --mixer=mingru --expand=2 --d_mlp=96
#     python train.py config/page.py --run=page_llama --mixer=attention --position=rope

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 3
d_model = 64
n_head = 2
d_mlp = 160
context = 128
tie_embeddings = True

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 1000
optimizer = "muon"
learning_rate = 2e-2
schedule = "linear"
warmup = 50

eval_every = 200
eval_pairs = "toyland"
