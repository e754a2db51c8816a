"""
Generation by CUDA graphs. A token takes hundreds of small operations, and launching them takes longer than a GPU
takes to run them. So they are recorded once, and launched together for every token.
"""

import sys

import torch
from torch.utils._pytree import tree_leaves, tree_map


class StepGraph:
    """
    model.features for one token after another. Each launch reads the same memory, so the token and the states are
    copied to where they were when the graph was recorded. ValueError if that is not possible.
    """

    def __init__(self, model, states):
        """Record one step that continues from these states."""
        if not all(isinstance(x, torch.Tensor) for x in tree_leaves(states)):
            raise ValueError("a state of this model is not a tensor")
        self.model, self.states = model, tree_map(torch.clone, states)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=model.embed.weight.device)
        with torch.cuda.device_of(self.token):
            self.launch = record(self.step)
        overwrite(self.states, states)  # recording has changed them

    def step(self):
        """Read the token, and leave its features and the new states in their places."""
        self.x, states = self.model.features(self.token, self.states)
        overwrite(self.states, states)

    def __call__(self, token, states):
        """A token (1, 1) after the states that this has returned last -> features (1, 1, D), the new states."""
        self.token.copy_(token)
        self.launch()
        return self.x, self.states


def features_by_graph(model, states):
    """A StepGraph that continues from the states or, after a line that says why not, model.features."""
    try:
        return StepGraph(model, states)
    except Exception as error:  # of many kinds: not everything can be recorded
        why = str(error).partition("\n")[0]
        print(f"no CUDA graph of this model ({why}): it generates without", file=sys.stderr)
        return model.features


def record(step):
    """Return a function that launches at once all that step() launches. It is called twice first, to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def overwrite(old, new):
    """Copy the tensors of a nest over those of another, which must have the same shapes and types."""
    for x, y in zip(tree_leaves(old), tree_leaves(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError("its states change their size or type from token to token")
        x.copy_(y)
