# Does a teacher help? config/toy.py's model teaches config/distill_toy.py's student, which also learns alone. Five
# seeds: a teacher and its students share one, and so does the student that learns alone.

corpus = "toy"
vocab_size = 1024

mixer = "hgrn2"
n_layer = 2
d_model = 64
n_head = 1
d_mlp = 176
context = 128

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 300
learning_rate = 4e-3
warmup = 50

eval_every = 100
eval_pairs = "toyland"

seeds = [0, 1, 2, 3, 4]
against = "alone"
models = {
    "teacher": {"n_layer": 3, "d_model": 128, "n_head": 2, "d_mlp": 352},
    "alone": {},
    "taught": {"teacher": "teacher", "alpha": 0.5, "temperature": 1.0},
    "taught at 2": {"teacher": "teacher", "alpha": 0.5, "temperature": 2.0},
    "by teacher alone": {"teacher": "teacher", "alpha": 1.0, "temperature": 1.0},
}
