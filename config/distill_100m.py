# BabyHGRN's student on BabyLM, 100M words: as distill_10m.py, with out/hgrn2_100m to teach it; on the same GPUs.

base = "distill_10m.py"
corpus = "babylm-100m"
teacher = "out/hgrn2_100m/best.pt"
