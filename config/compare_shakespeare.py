# The language models of "Were RNNs All We Needed?" on the characters of Shakespeare, at a laptop's size: a third
# of the paper's width, a quarter of its batch and of its steps; all else as in mingru_shakespeare.py and its
# neighbours. 40 minutes on one core; `python data.py shakespeare` makes the corpus.

corpus = "shakespeare"
vocab_size = 65

n_layer = 3
d_model = 128
d_mlp = 512
n_head = 2
expand = 2
context = 256
dropout = 0.2
mlp = "gelu"

batch_size = 16  # 16 x 256 = 4k characters a step
max_steps = 1250
learning_rate = 1e-3
min_lr = 1e-4
warmup = 100
beta2 = 0.99
grad_clip = 0.25

eval_every = 50

models = {
    "minGRU": {"mixer": "mingru", "conv": 4},
    "minLSTM": {"mixer": "minlstm", "conv": 4},
    "Mamba": {"mixer": "mamba", "mlp": "none", "norm_eps": 1e-5},
    "Transformer": {
        "mixer": "attention",
        "position": "learned",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "tie_embeddings": True,
    },
}
