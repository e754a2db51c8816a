"""
The mixers that HGRN2, minGRU and minLSTM are compared with, each behind the same contract as those of model.py:

    forward(x, state=None) -> y, state      x, y (B, T, D); state None before the first token

Shapes:  B batch   T time   D model width   H heads   E expanded width   N states of a channel   K width of a head
"""


def initialise_baseline(module, config):
    """
    The papers' initialisations of the mixers above, in one place; what is not listed keeps PyTorch's default.
    """


BASELINES = {}
