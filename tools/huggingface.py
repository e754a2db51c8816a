"""
nanoRNN for transformers: AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification.

This is modeling_nanornn.py in the folders that tools/export.py writes, with the files it imports beside it. It
runs under transformers 4.51 and 5. What a caller asks for is done or refused with an error, never ignored.

Weights are named as in a checkpoint, prefixed by "model.nanornn."; only the output layer is lm_head.
"""

import contextlib
from dataclasses import dataclass, fields
from types import MethodType

from kernels import FORMS, plain_class, use_kernels
from model import Block, Config, LanguageModel
from support.settings import one_of

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)


class NanoRNNConfig(PretrainedConfig):
    """
    The fields of model.Config, some of them also by the names that transformers gives them, and `kernels`: "auto",
    "loop", "torch" or "triton", which holds for all models of one folder in a process.
    """

    model_type = "nanornn"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "tie_word_embeddings": "tie_embeddings",
    }
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, **settings):
        for field in fields(Config):
            setattr(self, field.name, settings.pop(field.name, field.default))
        self.kernels = settings.pop("kernels", "auto")
        self.use_cache = settings.pop("use_cache", True)  # transformers 5 keeps this for generate() alone
        super().__init__(**{"tie_word_embeddings": self.tie_embeddings} | settings)

    def model_settings(self):
        """The model.Config."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


# ----------------------------------------------------------------------------------------------------
# The cache: what the layers remember of the text so far


class NanoRNNCache(Cache):
    """
    The layers' states after the tokens read so far. Like transformers' own caches it is updated by the model that
    is called with it. A state cannot take tokens back, so there is no crop().
    """

    is_compileable = is_croppable = False

    def __init__(self, n_layer):
        self.layers, self.n_layer = [], n_layer  # `layers` are transformers' own, of which there are none
        self.reset()

    def __len__(self):
        return self.n_layer

    def reset(self):
        self.states = [None]  # of the whole batch or, if the rows' states differ in shape, of each row
        self.real = None  # (B, tokens so far): False where they are padding
        self.unread = None  # (x, real): padded rows that the states have yet to read

    def get_seq_length(self, layer_idx=0):
        """The number of tokens so far, padding included."""
        return 0 if self.real is None else self.real.shape[1]

    def get_max_cache_shape(self):  # transformers 4
        return None

    def get_max_length(self, layer_idx=None):  # transformers 5: -1 is no maximum
        return -1

    def reorder_cache(self, beam_idx):
        """Keep these rows of the batch, in this order; beam search drops some and duplicates others."""
        if self.real is None:
            return
        if len(self.states) == 1:
            self.states = select_rows(self.states, beam_idx)
        else:
            self.states = [self.states[row] for row in beam_idx.tolist()]
        self.real, self.unread = select_rows((self.real, self.unread), beam_idx)

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats):
        if self.real is not None:
            self.reorder_cache(torch.arange(len(self.real)).repeat_interleave(repeats))

    def crop(self, *args):
        raise ValueError("a recurrent model's cache cannot take back tokens that were read, as crop() asks")

    def of_each_row(self, rows):
        """[states] of one row each."""
        if len(self.states) == rows:
            return self.states
        return [select_rows(self.states[0], torch.tensor([row])) for row in range(rows)]


def select_rows(states, rows):
    return tree_map_only(torch.Tensor, lambda state: state.index_select(0, rows.to(state.device)), states)


def as_one_batch(states):
    """[states of each row] -> [states of the batch], or the same list where rows differ, as attention's may."""
    leaves = [tree_flatten(row)[0] for row in states]
    joined = []
    for column in zip(*leaves):
        if all(isinstance(leaf, torch.Tensor) for leaf in column):
            if len({leaf.shape for leaf in column}) > 1:
                return states
            joined.append(torch.cat(column))
        elif len(set(column)) > 1:
            return states
        else:
            joined.append(column[0])
    return [tree_unflatten(joined, tree_flatten(states[0])[1])]


# ----------------------------------------------------------------------------------------------------
# Shared by the models


@dataclass
class Options:
    """The arguments of each forward that are seldom given."""

    use_cache: bool = None  # return a cache; None: unless training
    output_hidden_states: bool = None  # the input of each block and the features after the last
    output_attentions: bool = None  # refused: most mixers have none
    return_dict: bool = None  # else a tuple
    position_ids: torch.Tensor = None  # refused unless they are those that the model counts itself
    token_type_ids: torch.Tensor = None  # refused unless 0: no model here has types
    num_items_in_batch: torch.Tensor = None  # what the sum of the losses is divided by; None: their number

    @classmethod
    def read(cls, given):
        """{name: value} -> Options; TypeError if an argument is not among them."""
        for name in given:
            if not hasattr(cls, name):
                raise TypeError(f"nanoRNN's models have no argument {name}")
        return cls(**given)

    def complete(self, config, training):
        """Take from the config what was not given; ValueError for what these models do not have."""
        if self.use_cache is None:
            self.use_cache = config.use_cache and not training
        if self.return_dict is None:
            self.return_dict = config.return_dict
        if self.output_hidden_states is None:
            self.output_hidden_states = config.output_hidden_states
        if self.output_attentions or (self.output_attentions is None and config.output_attentions):
            raise ValueError("output_attentions: these models have no attention weights to return")
        if self.token_type_ids is not None and self.token_type_ids.any():
            raise ValueError("token_type_ids: these models do not tell token types apart; leave them out")
        return self


try:
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError:  # transformers 4.51

    class GradientCheckpointingLayer(nn.Module):
        gradient_checkpointing = False

        def __call__(self, *args):
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(super().__call__, *args)
            return super().__call__(*args)


class CheckpointedBlock(GradientCheckpointingLayer, Block):
    """A block that, after gradient_checkpointing_enable(), computes its forward again in backward."""


class NanoRNNPreTrainedModel(PreTrainedModel):
    """Base class of the three kinds of model."""

    config_class = NanoRNNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # a state cannot take back tokens that it has read, as assisted generation would need
    _supports_cache_class = True  # for transformers 4
    _supports_sdpa = True  # what attention there is, is computed so, whatever attn_implementation says
    _no_split_modules = ["CheckpointedBlock"]
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def _init_weights(self, module):
        """Initialise weights that no file holds: LanguageModel's as it does, other layers by N(0, 0.02)."""
        if any(part is module for part in self.base_model.nanornn.modules()):
            self.base_model.initialise_missing()
        elif isinstance(module, (nn.Linear, nn.Embedding)) and is_missing(module.weight):
            nn.init.normal_(module.weight, std=0.02)

    def low_precision(self):
        """Autocast as in training for weights of 16 bits: products in 16 bits, all else in float32."""
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()


def is_missing(weight):
    """True for a weight without a value; transformers marks those that have one, or leaves them for later."""
    return not weight.is_meta and not getattr(weight, "_is_hf_initialized", False)


# ----------------------------------------------------------------------------------------------------
# The models


class NanoRNNModel(NanoRNNPreTrainedModel):
    """The LanguageModel without its output layer."""

    def __init__(self, config):
        super().__init__(config)
        one_of("kernels", config.kernels, FORMS)
        self.settings = config.model_settings()
        self.settings.check()
        self.nanornn = LanguageModel(self.settings)
        use_kernels(config.kernels, self.nanornn)
        for part in self.nanornn.modules():
            if type(part) is Block:
                part.__class__ = CheckpointedBlock
            elif plain_class(part) is nn.Linear and type(part) is not nn.Linear:
                part.forward = MethodType(type(part).forward, part)  # as fast, and of the very class that
                part.__class__ = nn.Linear  # PyTorch's quantisation looks for
        for weight in self.parameters():
            weight._is_hf_initialized = not weight.is_meta
        self.nanornn.head = nn.Identity()
        self.post_init()

    def initialise_missing(self):
        """Give the weights that have no value those of a new LanguageModel."""
        missing = {name: x for name, x in self.nanornn.named_parameters() if is_missing(x)}
        if missing:
            new = dict(LanguageModel(self.settings).named_parameters())
            for name, weight in missing.items():
                weight.data.copy_(new[name])
                weight._is_hf_initialized = True

    def get_input_embeddings(self):
        return self.nanornn.embed

    def set_input_embeddings(self, embedding):
        self.nanornn.embed = embedding

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, **options
    ):
        """
        tokens (B, T), or their embeddings (B, T, D) -> last_hidden_state (B, T, D); and the cache.

        attention_mask (B, T), or with a cache (B, tokens so far + T), is 0 at padding, which may be anywhere. At
        padding the features of the text's last token are returned, so that [:, -1] is the last token of every row.
        For the other arguments see Options.
        """
        asked = Options.read(options).complete(self.config, self.training)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = input_ids if inputs_embeds is None else inputs_embeds
        cache = NanoRNNCache(self.config.n_layer) if past_key_values is None else past_key_values
        check_cache(cache)
        real = real_tokens(x, attention_mask, cache)
        if asked.position_ids is not None:
            self.check_positions(asked.position_ids, real, cache)
        padded = attention_mask is not None and not real.all()
        with self.low_precision():
            hidden = self.read(x, real, padded, cache, asked.output_hidden_states)
        cache.real = real if cache.real is None else torch.cat([cache.real.to(real.device), real], dim=1)
        every = tuple(hidden) if asked.output_hidden_states else None
        output = BaseModelOutputWithPast(hidden[-1], cache if asked.use_cache else None, every)
        return output if asked.return_dict else output.to_tuple()

    def check_positions(self, position_ids, real, cache):
        """ValueError unless they count the tokens of each text, with its padding or without; at padding, any."""
        start = cache.get_seq_length()
        counted = real.cumsum(dim=1) - 1 + (cache.real.sum(dim=1, keepdim=True) if start else 0)
        columns = torch.arange(start, start + real.shape[1], device=real.device)
        allowed = [counted] if self.settings.position == "learned" else [counted, columns]
        if not any(((position_ids == positions) | ~real).all() for positions in allowed):
            raise ValueError("position_ids: this model counts positions itself, 0, 1, 2 ... in each text")

    def read(self, x, real, padded, cache, every):
        """
        Read x (B, T) or (B, T, D) after what the cache holds -> [features (B, T, D)]; with `every`, all hidden
        states.

        A text that begins with padding somewhere takes one pass for all rows; their states, which differ, are made
        when the cache is first used again.
        """
        if cache.real is None and padded:
            hidden = self.read_padded(x, real, every)
            cache.unread = (x, real)
            return hidden
        if cache.unread is not None:
            self.read_rows(*cache.unread, cache, every=False)
            cache.unread = None
        if padded or len(cache.states) > 1:
            return self.read_rows(x, real, cache, every)
        hidden, cache.states[0] = self.run(x, cache.states[0], every)
        return hidden

    def read_padded(self, x, real, every):
        """Move padding behind the text, where no causal model sees it, read, and move back."""
        length = real.sum(dim=1, keepdim=True)
        order = (~real).int().argsort(dim=1, stable=True)[:, : max(1, length.max())]
        row = torch.arange(len(x), device=x.device).unsqueeze(1)
        hidden, _ = self.run(x[row, order], None, every)
        place = torch.where(real, real.cumsum(dim=1), length).sub(1).clamp(min=0)  # of each token, in x
        return [features[row, place] for features in hidden]

    def read_rows(self, x, real, cache, every):
        """Read one row after the other, without its padding."""
        hidden_states, states = [], []
        for tokens, is_real, state in zip(x, real, cache.of_each_row(len(x))):
            chosen = is_real if is_real.any() else torch.ones_like(is_real)
            hidden, new_state = self.run(tokens[chosen].unsqueeze(0), state, every)
            place = chosen.cumsum(dim=0).sub(1).clamp(min=0)
            hidden_states.append([features[0, place] for features in hidden])
            states.append(new_state if is_real.any() else state)
        cache.states = as_one_batch(states)
        return [torch.stack(column) for column in zip(*hidden_states)]

    def run(self, x, states, every):
        """LanguageModel.features of tokens or embeddings -> ([features] or all hidden states, the new states)."""
        model, hidden, hooks = self.nanornn, [], []
        if every:
            for layer in self.first_layers():
                hook = layer.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
                hooks.append(hook)
        tokens = x
        if x.is_floating_point():
            hooks.append(model.embed.register_forward_hook(lambda module, inputs, output: x))
            tokens = x.new_zeros(x.shape[:2], dtype=torch.long)
        states = tree_map_only(torch.Tensor, lambda state: state.to(x.device), states)
        try:
            features, states = model.features(tokens, states)
        finally:
            for hook in hooks:
                hook.remove()
        return [*hidden, features], states

    def first_layers(self):
        """The layers whose inputs are hidden states: each block, or the convolution before it."""
        layers = self.nanornn.layers
        if self.settings.position == "learned":
            layers = layers[1:]
        return layers[:: 2 if self.settings.conv else 1]


def check_cache(cache):
    if not isinstance(cache, NanoRNNCache):
        remedy = "leave past_key_values out at first, then give what the model has returned"
        raise ValueError(f"a {type(cache).__name__} cannot hold this model's states: {remedy}")


def real_tokens(x, mask, cache):
    """(B, T), False where a token of x is padding; the mask may also be of all tokens so far."""
    rows, length = x.shape[:2]
    start = cache.get_seq_length()
    if start and len(cache.real) != rows:
        raise ValueError(f"past_key_values is of {len(cache.real)} texts, the input of {rows}")
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=x.device)
    if mask.shape not in ((rows, length), (rows, start + length)):
        wanted = f"({rows}, {length})" + (f" or ({rows}, {start + length})" if start else "")
        raise ValueError(f"attention_mask is of shape {tuple(mask.shape)}, but should be {wanted}")
    mask = mask.to(x.device).bool()
    if start and mask.shape[1] > length and not torch.equal(mask[:, :start], cache.real.to(x.device)):
        raise ValueError("attention_mask differs from that with which past_key_values was made")
    return mask[:, start:] if mask.shape[1] > length else mask


class NanoRNNForCausalLM(NanoRNNPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.nanornn.embed.weight"}
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch when it accumulates gradients

    def __init__(self, config):
        super().__init__(config)
        self.model = NanoRNNModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self):
        return self.model

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, head):
        self.lm_head = head

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None,
        logits_to_keep=0, **options,
    ):  # fmt: skip
        """
        tokens (B, T) -> logits (B, T, vocab), of the last `logits_to_keep` if that is not 0; and the cache. With
        labels (B, T) also the mean cross-entropy of each next token; a label of -100 is left out.
        """
        asked = Options.read(options).complete(self.config, self.training)
        inputs = (input_ids, attention_mask, past_key_values, inputs_embeds)
        output = self.model(*inputs, **options | {"return_dict": True})
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        with self.low_precision():
            logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            labels = next_token_labels(labels, attention_mask)
            count = asked.num_items_in_batch
            loss = self.loss_function(logits, labels, logits.shape[-1], num_items_in_batch=count)
        output = CausalLMOutputWithPast(loss, logits, output.past_key_values, output.hidden_states)
        return output if asked.return_dict else output.to_tuple()

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """Begin with an empty cache, unless the caller gives one or wants none."""
        wanted, cache = generation_config.cache_implementation, model_kwargs.get("past_key_values")
        if wanted not in (None, "dynamic"):
            raise ValueError(f"cache_implementation = {wanted!r}: a recurrent model has only 'dynamic'")
        if cache is not None:
            check_cache(cache)
            cache._is_user_defined = True  # transformers 5 then reads no token beyond the text's end
        elif generation_config.use_cache:
            model_kwargs["past_key_values"] = NanoRNNCache(self.config.n_layer)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, **kwargs):
        """The arguments of forward: the tokens that the cache has not seen."""
        unread = kwargs.get("next_sequence_length")  # transformers 5
        if kwargs.get("cache_position") is not None:  # transformers 4
            unread = len(kwargs["cache_position"])
        if unread is not None and unread < 1:
            raise ValueError("past_key_values has seen all these tokens: give at least one more")
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        inputs.pop("cache_position", None)  # which the cache counts itself
        return inputs

    def get_compiled_call(self, compile_config):
        """The model itself, not compiled: its control flow depends on the padding, so it is no single graph."""
        return self


def next_token_labels(labels, mask):
    """labels (B, T), but -100 where the token before is padding, which predicts nothing."""
    if mask is None:
        return labels
    after_padding = nn.functional.pad(mask[:, -labels.shape[1] : -1] == 0, (1, 0))
    return labels.masked_fill(after_padding, -100)


class NanoRNNForSequenceClassification(NanoRNNPreTrainedModel):
    """A linear layer on the features of the text's last token."""

    accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it when it accumulates gradients

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = NanoRNNModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None,
        **options,
    ):  # fmt: skip
        """
        tokens (B, T) -> logits (B, labels). With labels also transformers' loss for config.problem_type or, where
        there is none, for their number and type: squared error, cross-entropy or binary cross-entropy.
        """
        asked = Options.read(options).complete(self.config, self.training)
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        inputs = (input_ids, attention_mask, past_key_values, inputs_embeds)
        output = self.model(*inputs, **options | {"return_dict": True})
        with self.low_precision():
            logits = self.score(output.last_hidden_state[:, -1])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        output = SequenceClassifierOutputWithPast(loss, logits, output.past_key_values, output.hidden_states)
        return output if asked.return_dict else output.to_tuple()
