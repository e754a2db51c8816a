# BabyHGRN's student on BabyLM, 10M words: hgrn2_10m.py from the start again, with out/hgrn2_10m to teach it, of
# the same size and on the same data. The final student of the paper is config/hgrn2_1b.py, on the Pile.
# Not stated in the paper and chosen here: alpha. One GPU of 80 GB takes 48 GiB.

base = "hgrn2_10m.py"
teacher = "out/hgrn2_10m/best.pt"
alpha = 0.5
temperature = 1.0
