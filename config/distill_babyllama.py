# BabyLlama's distillation (Timiryasov & Tastet 2023, arXiv:2308.02019), to be combined with a model's file:
#     python distill.py config/NAME.py config/distill_babyllama.py --teacher=out/ONE,out/OTHER
# Its alpha weighs the cross-entropy, ours the divergence; both are 0.5. Its code sums the divergence over the 128
# positions of a sequence and so weighs it 128 times as much: sum_positions = True does so, too.

alpha = 0.5
temperature = 2.0
mean_of = "logits"
