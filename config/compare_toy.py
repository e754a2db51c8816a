# All twelve mixers on toyland, 0.85 to 0.90 million parameters each: under half an hour on two CPU cores.
# Each replaces HGRN2 in the model of config/toy.py, with an MLP of the width that makes the sizes about equal;
# Mamba and mLSTM are whole blocks, so they have no MLP and more layers. The learning rate is 4e-3, HGRN2's, but
# 2e-3 or 8e-3 where that had the lower validation loss after 120 steps of 8 sequences; minLSTM has minGRU's.
# sLSTM, S4D, Aaren and Hyena, for which this was not tried, are run at both 4e-3 and 8e-3.

corpus = "toy"
vocab_size = 1024

n_layer = 3
d_model = 128
n_head = 2
d_mlp = 352
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 200
learning_rate = 4e-3
warmup = 20

eval_every = 100
eval_pairs = "toyland"

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "minGRU": {"mixer": "mingru", "expand": 2, "d_mlp": 264, "learning_rates": [8e-3]},
    "minLSTM": {"mixer": "minlstm", "expand": 2, "d_mlp": 176, "learning_rates": [8e-3]},
    "Transformer": {"mixer": "attention", "position": "rope", "n_head": 4, "learning_rates": [2e-3]},
    "LSTM": {"mixer": "lstm", "d_mlp": 136, "learning_rates": [8e-3]},
    "GRU": {"mixer": "gru", "d_mlp": 224, "learning_rates": [8e-3]},
    "Mamba": {"mixer": "mamba", "mlp": "none", "expand": 2, "n_layer": 5, "learning_rates": [8e-3]},
    "mLSTM": {"mixer": "mlstm", "mlp": "none", "expand": 2, "n_layer": 6},
    "sLSTM": {"mixer": "slstm", "learning_rates": [4e-3, 8e-3]},
    "S4D": {"mixer": "s4d", "d_mlp": 424, "learning_rates": [4e-3, 8e-3]},
    "Aaren": {"mixer": "aaren", "n_head": 4, "d_mlp": 392, "learning_rates": [4e-3, 8e-3]},
    "Hyena": {"mixer": "hyena", "d_mlp": 288, "learning_rates": [4e-3, 8e-3]},
}
