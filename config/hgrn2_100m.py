# BabyHGRN's HGRN2 on BabyLM strict, 100M words (Table 4): the model and recipe of the run on 10M words,
# on the same GPUs.

base = "hgrn2_10m.py"
corpus = "babylm-100m"
