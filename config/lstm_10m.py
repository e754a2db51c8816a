# The nearest form here of BabyHGRN's LSTM (appendix B) on BabyLM strict-small, 10M words: 171,641,344 parameters,
# "300M" there. Embedding 512, hidden 4096, 2 layers and dropout are the paper's. There the second layer and the
# logits read all 4096 of the layer before them; here each layer is projected back to 512 and added to the stream,
# and what it reads goes through an RMSNorm. The same recipe as hgrn2_10m.
# One GPU of 24 GB should do: in PyTorch's own cells, without cuDNN, it takes 18 GiB.

base = "hgrn2_10m.py"
mixer = "lstm"
mlp = "none"
n_layer = 2
d_model = 512
expand = 8  # 8 x 512 = 4096
dropout = 0.1
