"""
Generate text from a run, one token at a time, in memory that does not grow with the text (unless
the model has attention or Hyena).

    python sample.py out/toy                   asks how a text begins, and continues it
    python sample.py out/toy --samples=3       three texts
    python sample.py out/toy --prompt="Mia saw" --temperature=0.8 --seed=1
"""

import sys
from dataclasses import dataclass, replace
from itertools import chain, count

import data
from model import load
from support.console import refuse_torchrun, run_script
from support.devices import check_kernels, find_device
from support.settings import UserError, at_least, configure

import torch
from tokenizers.decoders import DecodeStream


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    prompt: str = ""  # how the text begins
    samples: int = 0  # texts; 0: one, or without a prompt, on a terminal, as many as you ask for
    tokens: int = 200  # the most to generate for each; fewer if the text ends
    temperature: float = 0.8  # below 1: likely tokens become likelier; 0: always the likeliest
    top_k: int = 0  # choose among this many likeliest tokens; 0: all
    top_p: float = 1.0  # choose among the fewest tokens that together have this probability
    seed: int = 0  # the same seed gives the same text; the next text has the next seed
    device: str = "auto"  # cuda, mps, cpu; auto: the first one available
    kernels: str = "auto"  # form that the model runs in: auto (loop on a CPU), loop, torch or triton
    cuda_graph: bool = False  # launch each token's work at once, as a CUDA graph; not yet checked on a GPU

    def check(self):
        at_least(1, self, "tokens")
        at_least(0, self, "samples", "temperature", "top_k", "seed")
        device = find_device(self.device)
        check_kernels(self.kernels, self.device)
        if self.cuda_graph and device.type != "cuda":
            raise UserError(f"cuda_graph = True: needs an NVIDIA GPU, not {device}; leave out --cuda_graph")
        if self.seed >= 2**32:
            raise UserError(f"seed = {self.seed}: must be below 2^32")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: must be above 0 and at most 1")


def main(s):
    device = find_device(s.device)
    form = "loop" if s.kernels == "auto" and device.type == "cpu" else s.kernels  # fastest for single tokens
    model, tokenizer, _ = load(s.run, device, form)
    if not s.prompt and not s.samples and on_terminal():
        return converse(model, tokenizer, s)
    for number in range(max(1, s.samples)):
        if number > 0:
            print()
        write(model, tokenizer, replace(s, seed=s.seed + number))


def on_terminal():
    return all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))


def converse(model, tokenizer, s):
    """Ask how a text begins and continue it, again and again, until Ctrl-D."""
    print("How does the text begin? Ctrl-D ends.")
    for seed in count(s.seed):
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        write(model, tokenizer, replace(s, prompt=prompt, seed=seed))


def write(model, tokenizer, s):
    """Print the prompt and the generated text after it, token by token."""
    prompt = s.prompt.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    prompt = tokenizer.encode(prompt, add_special_tokens=False).ids
    spaced = data.BOS in tokenizer.get_vocab()  # words: each line of a text begins with a space; not so letters
    stream, line_start = DecodeStream(skip_special_tokens=True), True
    for token in chain(prompt, generate(model, [data.start_of(tokenizer), *prompt], s)):
        if token == tokenizer.token_to_id(data.EOS):
            break
        text = stream.step(tokenizer, token) or ""  # None while the bytes of a letter are incomplete
        if text:
            print(text.removeprefix(" ") if spaced and line_start else text, end="", flush=True)
            line_start = text.endswith("\n")
    print()


@torch.inference_mode()
def generate(model, tokens, s):
    """Yield up to s.tokens tokens that follow the given ones; only the states are kept between them."""
    device = model.embed.weight.device
    generator = torch.Generator(device).manual_seed(s.seed)
    tokens, states, features = torch.tensor([tokens], device=device), None, model.features
    for number in range(s.tokens):
        if number == 1 and s.cuda_graph:  # the prompt has been read
            from fast.generation import features_by_graph

            features = features_by_graph(model, states)
        x, states = features(tokens, states)
        tokens = choose(model.head(x[:, -1]).float(), s, generator)  # (1, 1)
        yield tokens.item()


def choose(logits, s, generator):
    """logits (B, vocab) -> one token each, (B, 1)."""
    if s.temperature < 1e-6:  # in effect 0, and float32 cannot divide by much less
        return logits.argmax(dim=-1, keepdim=True)
    logits = (logits - logits.max()) / s.temperature
    p, tokens = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = p.cumsum(dim=-1) - p  # the probability of all likelier tokens
    p[before >= s.top_p] = 0
    if s.top_k:
        p[:, s.top_k :] = 0
    return tokens.gather(-1, p.multinomial(1, generator=generator))


def script(args):
    refuse_torchrun()
    main(configure(Settings(), args, word="run"))


if __name__ == "__main__":
    run_script(script)
