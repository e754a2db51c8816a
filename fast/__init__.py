"""
Faster forms with the same results: the recurrences in a few large operations for CPUs, layers and losses with
hand-written gradients, long convolutions by Fourier transform, scoring that reads shared prefixes once, and
generation by CUDA graphs. kernels.use_kernels chooses all but the last, which is sample.py --cuda_graph.
"""
