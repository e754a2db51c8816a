# BabyHGRN's question at a size for two CPU cores and an hour: does HGRN2 beat a Llama of equal size on the same
# text, and does it gain from a teacher of its own size? `make babyhgrn SCALE=tiny` prepares text and benchmarks
# and runs this. 1.8M parameters read 1.6M tokens of ten million words of English. The taught students have seeds
# of their own, so that none begins where its teacher began. The learning rates were the best of 2e-3, 4e-3, 8e-3
# and, for HGRN2, 1.6e-2 by the validation loss of one seed after 300 steps: 4.207, 4.175, 4.088, 4.136 for HGRN2,
# 4.197, 4.085, 4.099 for Llama. BEAR is left out: english_small, which has read many times as much, is at chance
# on it, and its 628,497 statements take longer than a run.

corpus = "english"
vocab_size = 8000

n_layer = 4
d_model = 128
n_head = 2
d_mlp = 352
context = 128
tie_embeddings = True

batch_size = 32  # 32 x 128 = 4k tokens a step
max_steps = 400
warmup = 50

eval_every = 200
seeds = [0, 1, 2]
tasks = "blimp_filtered,supplement,ewok_filtered"
against = "HGRN2"

models = {
    "HGRN2": {"mixer": "hgrn2", "learning_rates": [8e-3]},
    "Llama": {"mixer": "attention", "position": "rope", "learning_rates": [4e-3]},
    "HGRN2, taught": {"mixer": "hgrn2", "teacher": "HGRN2", "seeds": [3, 4, 5], "learning_rates": [8e-3]},
}
