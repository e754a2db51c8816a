# Six models of 6.9 to 7.0 million parameters read 10.6 million words of English once, and BLiMP is scored: a small
# copy of BabyHGRN's first experiment. Make the corpus first, and fetch BLiMP:
#     python data.py text english corpus/*.train.txt.gz --val="corpus/*.dev.txt.gz" --vocab_size=8000
#     python data.py blimp
# Estimated at about 90 s of an H100 each: 2,270 steps of 8k tokens, too small to fill it, 10 to 20 ms each
# (xLSTM's one sLSTM layer goes step by step and takes longer), four times BLiMP, 5 to 10 s, half a minute to
# compile. On two CPU cores: 18.6M tokens at 6,500/s and four times 60,000 pairs at 170/s are 70 minutes each, 7
# hours in all.
# Learning rates are those of toyland, HGRN2's for all but Llama, which has its own: no sweep on this corpus yet.

corpus = "english"
vocab_size = 8000

n_layer = 6
d_model = 256
n_head = 4
d_mlp = 704
context = 128
tie_embeddings = True

batch_size = 64  # 64 x 128 = 8k tokens a step
epochs = 1
learning_rate = 4e-3
warmup = 100

eval_every = 760
eval_pairs = "blimp_filtered"

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "Llama": {"mixer": "attention", "position": "rope", "learning_rates": [2e-3]},
    "LSTM": {"mixer": "lstm", "d_mlp": 272},
    "Mamba": {"mixer": "mamba", "mlp": "none", "expand": 2, "n_layer": 11},
    "xLSTM": {
        "mixer": "mlstm mlstm mlstm slstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm mlstm",
        "mlp": "none none none geglu none none none none none none none none",
        "norm": "layernorm_nobias",
        "expand": 2,
        "d_mlp": 384,  # of the sLSTM block alone
        "n_layer": 12,
    },
    "minGRU": {"mixer": "mingru", "expand": 2, "d_mlp": 528},
}
