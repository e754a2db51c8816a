# What each choice in a recipe with Muon is worth: 300 steps of it, and as many with one thing changed. Losses of
# other vocabularies are compared per word; make their corpora like that of 8,000:
#     python data.py text english4000 corpus/*.train.txt.gz --val="corpus/*.dev.txt.gz" --vocab_size=4000

base = "english_small.py"

max_steps = 300
warmup = 50

eval_every = 300

models = {
    "recipe": {},
    "cosine": {"schedule": "cosine"},
    "wsd": {"schedule": "wsd"},
    "half the rate": {"learning_rates": [1e-2]},
    "twice the rate": {"learning_rates": [4e-2]},
    "AdamW alone": {"optimizer": "adamw", "learning_rates": [8e-3]},
    "documents apart": {"documents": "apart"},
    "2,000 entries": {"corpus": "english2000", "vocab_size": 2000},
    "4,000 entries": {"corpus": "english4000", "vocab_size": 4000},
    "half the batch, twice the steps": {"batch_size": 16, "max_steps": 600, "warmup": 100},
    "twice the batch, half the steps": {"batch_size": 64, "max_steps": 150, "warmup": 25},
    "context 64": {"context": 64, "batch_size": 64},
    "context 256": {"context": 256, "batch_size": 16},
    "wider": {"d_model": 192, "n_head": 3, "d_mlp": 528},
    "deeper": {"n_layer": 8},
    "one head": {"n_head": 1},
    "four heads": {"n_head": 4},
    "a convolution": {"conv": 4},
    "dropout 0.1": {"dropout": 0.1},
    "two tables": {"tie_embeddings": False},
}
