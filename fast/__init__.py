"""
What makes nanoRNN fast and changes no result: the recurrences in few large operations for CPUs, layers and losses
with gradients by hand, and the tree that scores shared beginnings once. kernels.use_kernels puts it in place.
"""
