# BabyHGRN's Tables 2 and 5 at the paper's sizes: 366M parameters of HGRN2 against 402M of Llama on BabyLM
# strict-small, and 991M of HGRN2 on 10M words of the Pile, each HGRN2 without and with a teacher of its own size.
# Sizes and their sources: hgrn2_10m.py, llama_10m.py, hgrn2_1b.py. For four GPUs of 48 GB or one of 80; by 30
# steps of hgrn2_10m, an H200 should need ten minutes for a run of 366M, half an hour for 991M. Chosen here: one
# seed, as there, but another for students; and that the best epoch has the lowest validation loss, since to
# choose it by score would be to choose it on the test. Not run yet.

context = 512
corpus = "babylm-10m"

mixer = "hgrn2"
n_layer = 26
d_model = 1024
n_head = 8
d_mlp = 2816

batch_size = 64  # 64 x 512 = 32k tokens a step
epochs = 5
optimizer = "adam"
schedule = "linear"
weight_decay = 0.0
beta2 = 0.999
learning_rates = [1e-3, 1e-4]

tasks = "blimp_filtered,supplement,ewok_filtered,bear"

models = {
    "HGRN2 366M": {},
    "Llama 402M": {"mixer": "attention", "position": "rope", "n_layer": 22, "n_head": 32, "d_mlp": 4096},
    "HGRN2 366M, taught": {"teacher": "HGRN2 366M", "seeds": [1], "learning_rates": [1e-3]},
    "HGRN2 991M": {
        "corpus": "pile-10m",
        "n_layer": 18,
        "d_model": 2048,
        "n_head": 16,
        "d_mlp": 5632,
        "accumulate": 2,
        "learning_rates": [4e-4],
    },
    "HGRN2 991M, taught": {
        "teacher": "HGRN2 991M",
        "seeds": [1],
        "corpus": "pile-10m",
        "n_layer": 18,
        "d_model": 2048,
        "n_head": 16,
        "d_mlp": 5632,
        "accumulate": 2,
        "learning_rates": [4e-4],
    },
}
