"""
nanoRNN for transformers: AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification.

This is modeling_nanornn.py in the folders that tools/export.py writes, with the files it imports beside it. It
runs under transformers 4.51 and 5. Weights have the names of a checkpoint, with "model." before them.
"""

import contextlib
from dataclasses import fields

from kernels import FORMS, use_kernels
from model import Config, LanguageModel
from support.settings import one_of

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
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


class NanoRNNPreTrainedModel(PreTrainedModel):
    """A LanguageModel in `self.model`, and what the three kinds of model below share."""

    config_class = NanoRNNConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it when it accumulates gradients
    _is_stateful = True  # a state cannot take back tokens that it has read, as assisted generation would need

    def __init__(self, config):
        super().__init__(config)
        one_of("kernels", config.kernels, FORMS)
        self.model = LanguageModel(config.model_settings())
        use_kernels(config.kernels, self.model)

    def post_init(self):
        """Tell transformers which weights are one tensor with another; version 5 also asks with which."""
        first, copies = {}, {}
        for name, weight in self.named_parameters(remove_duplicate=False):
            if first.setdefault(weight, name) != name:
                copies[name] = first[weight]
        if self.config.tie_embeddings and hasattr(self.model.head, "weight"):
            copies["model.head.weight"] = "model.embed.weight"  # two tensors until transformers 4 ties them
        self._tied_weights_keys = list(copies) if transformers.__version__.startswith("4.") else copies
        super().post_init()

    def _init_weights(self, module):
        """Do nothing: LanguageModel initialises itself."""

    def get_input_embeddings(self):
        return self.model.embed

    def set_input_embeddings(self, embedding):
        self.model.embed = embedding

    def features(self, tokens, mask=None, states=None):
        """
        tokens (B, T), mask (B, T), 0 at padding -> features (B, T, D) and states, which are None after padding.

        Padding, wherever it is, is moved behind the text, where no causal model sees it. At padding the features
        of the text's last token are returned, so that [:, -1] is the last token of every row.
        """
        if mask is None or states is not None or mask.all():
            return self.model.features(tokens, states)
        real = mask.bool()
        length = real.sum(dim=1, keepdim=True)
        order = (~real).int().argsort(dim=1, stable=True)[:, : max(1, length.max())]
        x, _ = self.model.features(tokens.gather(1, order))
        place = torch.where(real, real.cumsum(dim=1), length).sub(1).clamp(min=0)  # of each token, in x
        return x.gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[-1])), None

    def low_precision(self):
        """For weights of 16 bits, autocast as in training: products in 16 bits, all else in float32."""
        if self.dtype in (torch.bfloat16, torch.float16):
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def as_asked(self, output, return_dict):
        """The ModelOutput, or the same as a tuple where that is asked for."""
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()


class NanoRNNModel(NanoRNNPreTrainedModel):
    """The language model without its output layer."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.head\."]

    def __init__(self, config):
        super().__init__(config)
        self.model.head = nn.Identity()
        self.post_init()

    def forward(
        self, input_ids, attention_mask=None, past_key_values=None, token_type_ids=None, return_dict=None,
        **kwargs,
    ):  # fmt: skip
        """tokens (B, T) -> last_hidden_state (B, T, D) and the states; other arguments are ignored."""
        with self.low_precision():
            x, states = self.features(input_ids, attention_mask, past_key_values)
        output = BaseModelOutputWithPast(last_hidden_state=x, past_key_values=states)
        return self.as_asked(output, return_dict)


class NanoRNNForCausalLM(NanoRNNPreTrainedModel, GenerationMixin):
    """The language model. Its cache, `past_key_values`, is the list of its layers' states."""

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.model.head

    def set_output_embeddings(self, head):
        self.model.head = head

    def forward(
        self, input_ids, attention_mask=None, past_key_values=None, token_type_ids=None, labels=None,
        use_cache=None, return_dict=None, **kwargs,
    ):  # fmt: skip
        """
        tokens (B, T) -> logits (B, T, vocab) and the states. With labels (B, T) also the mean cross-entropy of
        each next token; a label of -100 is left out.
        """
        with self.low_precision():
            x, states = self.features(input_ids, attention_mask, past_key_values)
            logits = self.model.head(x)
        loss = None if labels is None else next_token_loss(logits, labels, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        output = CausalLMOutputWithPast(loss, logits, past_key_values=states if use_cache else None)
        return self.as_asked(output, return_dict)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        """False: generate() makes no cache. The first forward returns one, unless rows differ in length."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, use_cache=None, **kwargs
    ):
        """The arguments of forward for the next token: with states, the last token alone is read."""
        return {
            "input_ids": input_ids if past_key_values is None else input_ids[:, -1:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }

    def _reorder_cache(self, states, rows):
        """The states of these rows of a batch: beam search drops some rows and duplicates others."""
        if isinstance(states, torch.Tensor):
            return states.index_select(0, rows.to(states.device))
        if isinstance(states, (list, tuple)):
            return type(states)(self._reorder_cache(state, rows) for state in states)
        return states  # the number of tokens read, the same in all rows


def next_token_loss(logits, labels, mask=None):
    """Mean cross-entropy of labels[t + 1] by logits[t], but not where the label is -100 or token t is padding."""
    labels = labels[:, 1:]
    if mask is not None:
        labels = labels.masked_fill(mask[:, -logits.shape[1] : -1] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())


class NanoRNNForSequenceClassification(NanoRNNPreTrainedModel):
    """A linear layer on the features of the text's last token."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.head\."]

    def __init__(self, config):
        super().__init__(config)
        self.model.head = nn.Identity()
        self.num_labels = config.num_labels
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """Initialise the one layer that LanguageModel does not have."""
        if module is getattr(self, "score", None):
            nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, labels=None, return_dict=None, **kwargs
    ):
        """
        tokens (B, T) -> logits (B, labels). With labels (B,) also the loss: the squared error if there is one
        label, else the cross-entropy.
        """
        if attention_mask is None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        with self.low_precision():
            x, _ = self.features(input_ids, attention_mask)
            logits = self.score(x[:, -1])
        loss = None
        if labels is not None and self.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits.float(), labels)
        return self.as_asked(SequenceClassifierOutputWithPast(loss, logits), return_dict)
