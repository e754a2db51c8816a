# The learning rate of each model of babyhgrn_small.py and babyhgrn_mixers.py: three each, 400 steps, one seed,
# and the lowest validation loss. All have the recipe of babyhgrn_small.py and 1.8 million parameters. Not run
# yet.

base = "english_small.py"

max_steps = 400
muon_times = 1.0
warmup = 50

eval_every = 400
learning_rates = [1e-2, 2e-2, 4e-2]

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "Llama": {"mixer": "attention", "position": "rope"},
    "minGRU": {"mixer": "mingru", "expand": 2, "d_mlp": 264},
    "LSTM": {"mixer": "lstm", "d_mlp": 136},
    "Mamba": {"mixer": "mamba", "mlp": "none", "expand": 2, "n_layer": 7},
    "xLSTM": {
        "mixer": "mlstm mlstm slstm mlstm mlstm mlstm mlstm",
        "mlp": "none none geglu none none none none",
        "norm": "layernorm_nobias",
        "expand": 2,
        "d_mlp": 280,  # of the sLSTM block alone
        "n_layer": 7,
    },
}
