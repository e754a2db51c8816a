# The same question on one GPU in half an hour: models of 6.9M parameters read the ten million words of English
# once, HGRN2 and Llama each at three learning rates with two seeds; the students of HGRN2's best have seeds of
# their own. Estimated at 90 s a run on an H100: 2,270 steps, 10 to 20 ms each, half a minute to compile; 14 runs,
# and a minute of evaluation for each of the best six. Not run yet.

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
warmup = 100

eval_every = 760
seeds = [0, 1]
learning_rates = [2e-3, 4e-3, 8e-3]
tasks = "blimp_filtered,supplement,ewok_filtered,bear"
against = "HGRN2"

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "Llama": {"mixer": "attention", "position": "rope", "learning_rates": [1e-3, 2e-3, 4e-3]},
    "HGRN2, taught": {"mixer": "hgrn2", "teacher": "HGRN2", "seeds": [2, 3], "learning_rates": [4e-3]},
}
