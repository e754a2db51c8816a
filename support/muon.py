"""
Muon for the linear layers inside the blocks and AdamW for all other weights, such as the cells of LSTM and GRU, as
one optimizer.

A matrix with momentum U diag(s) V^T takes a step along U V^T, so that rare directions move as far as common ones
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). U V^T is found by five Newton-Schulz iterations,
in bfloat16, so a step may round differently on other hardware or with other threads.
"""

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """
    torch.optim.Muon for some weights and AdamW for the others, with one list of groups and one state. A group
    for Muon has `times`: its learning rate in multiples of AdamW's.
    """

    def __init__(self, groups, matrices, times, **adam):
        """`groups` of all weights, as for AdamW, whose settings `adam` are; of these, `matrices` are for Muon."""
        chosen = {id(p) for p in matrices}
        ours = [g | {"params": [p for p in g["params"] if id(p) in chosen], "times": times} for g in groups]
        others = [g | {"params": [p for p in g["params"] if id(p) not in chosen]} for g in groups]
        self.muon = torch.optim.Muon(ours, lr=times * adam["lr"], adjust_lr_fn="original")
        self.adam = torch.optim.AdamW(others, **adam)
        super().__init__(self.muon.param_groups + self.adam.param_groups, {})

    @torch.no_grad()
    def step(self):
        for part, mine in ((self.muon, True), (self.adam, False)):
            part.state = self.state  # load_state_dict replaces state and groups: pass on the current ones
            part.param_groups = [group for group in self.param_groups if ("times" in group) == mine]
            part.step()


def matrices_of_layers(model):
    """Yield the weights of the linear layers between the embedding and the head."""
    for module in model.layers.modules():
        if isinstance(module, nn.Linear):
            yield module.weight
