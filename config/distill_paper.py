# BabyHGRN's distillation, to go with a model's file: python distill.py config/NAME.py config/distill_paper.py
# --teacher=out/NAME. Its formula has no temperature, which is 1. Its alpha is stated nowhere: 0.5 is chosen here.

alpha = 0.5
temperature = 1.0
