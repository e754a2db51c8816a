# BabyHGRN's other claim, that a teacher helps: HGRN2 on a quarter of the ten million words, alone and taught by
# that same model, three seeds each, beside a model that has learned nothing. All else is as in babyhgrn_mixers.py.
# The students have seeds of their own, so that none begins where its teacher began.

base = "babyhgrn_mixers.py"

seeds = [0, 1, 2]

models = {
    "HGRN2": {"mixer": "hgrn2"},
    "HGRN2, taught": {"mixer": "hgrn2", "teacher": "HGRN2", "seeds": [3, 4, 5]},
    "untrained": {"mixer": "hgrn2", "max_steps": 1, "learning_rates": [0.0]},
}
