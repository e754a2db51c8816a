"""
Faster forms with the same results: the recurrences in a few large operations for CPUs, layers and losses with
hand-written gradients, and scoring that reads shared prefixes once. kernels.use_kernels puts them in place.
"""
