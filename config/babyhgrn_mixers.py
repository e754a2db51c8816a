# Six kinds of model, 1.8 million parameters each, on a quarter of the ten million words: HGRN2 and Llama as in
# babyhgrn_small.py beside those that BabyHGRN and "Were RNNs All We Needed?" compare them with, one seed.
# One pair of learning rates for all, 4e-3 for AdamW and 2e-2 for Muon; to HGRN2 and Llama, 2e-2 for both gives a
# lower loss.

base = "english_small.py"

max_steps = 1136
learning_rate = 4e-3
muon_times = 5.0  # 2e-2
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
