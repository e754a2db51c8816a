"""
Generation, one token at a time. The step of a token is hundreds of small operations, and on a GPU it takes longer
to launch them than to run them. As a CUDA graph they are recorded once, and launched together for every token.
"""

import sys

import torch


class Reader:
    """A model, and its states after the tokens read so far."""

    def __init__(self, model, states=None):
        self.model, self.states = model, states

    def read(self, tokens):
        """Read tokens (B, T) and return the logits of the next one, (B, vocab)."""
        x, self.states = self.model.features(tokens, self.states)
        return self.model.head(x[:, -1])


class GraphReader(Reader):
    """
    Continues after what another reader has read, a token at a time, by a CUDA graph. Each launch reads the same
    memory: the token and the states are copied to where they were when the graph was recorded.
    """

    def __init__(self, reader):
        super().__init__(reader.model, copied(reader.states))
        if not all(isinstance(x, torch.Tensor) for x in leaves(self.states)):
            raise ValueError("a state of this model is not a tensor")
        self.token = torch.zeros(1, 1, dtype=torch.long, device=reader.model.embed.weight.device)
        with torch.cuda.device_of(self.token):
            self.launch = record(self.step)
        overwrite(self.states, reader.states)  # recording has changed them

    def step(self):
        """Read the token and leave the logits and the new states in their places."""
        states = self.states
        self.logits = super().read(self.token)
        overwrite(states, self.states)
        self.states = states

    def read(self, token):
        """Read a token (1, 1) and return the logits of the next one, (1, vocab), overwritten by the next call."""
        self.token.copy_(token)
        self.launch()
        return self.logits


def with_graph(reader):
    """Return a GraphReader that continues after a reader or, with a line on why, the reader itself."""
    try:
        return GraphReader(reader)
    except Exception as error:  # of many kinds: not everything can be recorded
        why = str(error).partition("\n")[0]
        print(f"no CUDA graph of this model ({why}): it generates without", file=sys.stderr)
        return reader


def record(step):
    """Return a function that launches all that step() launches, at once. It is called twice first, to warm up."""
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


def leaves(states):
    """Everything in a nest of lists and tuples."""
    if not isinstance(states, (list, tuple)):
        return [states]
    return [leaf for part in states for leaf in leaves(part)]


def copied(states):
    """A nest with copies of its tensors."""
    if isinstance(states, torch.Tensor):
        return states.clone()
    return [copied(part) for part in states] if isinstance(states, (list, tuple)) else states


def overwrite(old, new):
    """Copy the tensors of a nest over those of another, which must have the same shapes and types."""
    for x, y in zip(leaves(old), leaves(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError("its states change their size or type from token to token")
        x.copy_(y)
