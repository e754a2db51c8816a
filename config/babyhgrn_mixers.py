# Six kinds of model, 1.8 million parameters each, on a quarter of the ten million words: HGRN2 and Llama as in
# babyhgrn_small.py beside those that BabyHGRN and "Were RNNs All We Needed?" compare them with, one seed.
# All have english_small's learning rate, which babyhgrn_rates.py finds best for each, or nearly so.

base = "english_small.py"

max_steps = 1136
warmup = 50

eval_every = 284
eval_pairs = "blimp_fast"
best_by = "loss"
protocol = "2025"
tasks = "blimp_filtered,supplement,ewok_filtered"
beside = "out/english_3gram"
against = "HGRN2"

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
