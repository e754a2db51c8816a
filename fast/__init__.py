"""
Faster forms with the same results: the recurrences in few large operations for CPUs, layers and losses with
gradients by hand, and scoring that reads shared beginnings once. kernels.use_kernels puts them in place.
"""
