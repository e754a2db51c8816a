"""
nanoRNN for `transformers`: what AutoModel, AutoModelForCausalLM and AutoModelForSequenceClassification find in a
folder that export.py has written, under transformers 4.51 as under 5.

export.py joins this file, and the parts of model.py that it needs, into one. A model's weights have the names that
they have in a checkpoint, with "model." before them.
"""

import contextlib
from dataclasses import fields

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

from model import Config, LanguageModel


class NanoRNNConfig(PretrainedConfig):
    """The fields of Config, some of them also by the names that transformers gives them."""

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
        self.use_cache = settings.pop("use_cache", True)  # transformers 5 keeps this for generate() alone
        super().__init__(**{"tie_word_embeddings": self.tie_embeddings} | settings)

    def model_settings(self):
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


class NanoRNNPreTrainedModel(PreTrainedModel):
    """A LanguageModel, and what the three kinds of model made of it share."""

    config_class = NanoRNNConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False  # the loss is a mean: Trainer divides it where it accumulates gradients
    _is_stateful = True  # what a state has read cannot be unread, as assisted generation would

    def __init__(self, config):
        super().__init__(config)
        self.model = LanguageModel(config.model_settings())

    def post_init(self):
        """Names the weights that are one with another; transformers 5 wants to know with which."""
        first, copies = {}, {}
        for name, weight in self.named_parameters(remove_duplicate=False):
            if first.setdefault(weight, name) != name:
                copies[name] = first[weight]
        if self.config.tie_embeddings and hasattr(self.model.head, "weight"):
            copies["model.head.weight"] = "model.embed.weight"  # two in name alone while transformers 4 loads
        self._tied_weights_keys = list(copies) if transformers.__version__.startswith("4.") else copies
        super().post_init()

    def _init_weights(self, module):
        """LanguageModel has made its own."""

    def get_input_embeddings(self):
        return self.model.embed

    def set_input_embeddings(self, embedding):
        self.model.embed = embedding

    def features(self, tokens, mask=None, states=None):
        """
        tokens (B, T), mask (B, T), 0 at padding -> (B, T, D), and the states, or None after padding, for a state
        forgets nothing. Padding, wherever it is, goes behind the text, where no causal model can see it. Its own
        features are those of the text's last token, so that [:, -1] is right for every row.
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
        """Weights of 16 bits are multiplied as they are; all else is computed as in training, under autocast."""
        low = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if low else contextlib.nullcontext()

    def packed(self, output, return_dict):
        named = self.config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()


class NanoRNNModel(NanoRNNPreTrainedModel):
    """Features without the output layer."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.head\."]

    def __init__(self, config):
        super().__init__(config)
        self.model.head = nn.Identity()
        self.post_init()

    def forward(
        self, input_ids, attention_mask=None, past_key_values=None, token_type_ids=None, return_dict=None,
        **kwargs,
    ):  # fmt: skip
        """-> last_hidden_state (B, T, D); what else tools pass is of no use here."""
        with self.low_precision():
            x, states = self.features(input_ids, attention_mask, past_key_values)
        return self.packed(BaseModelOutputWithPast(last_hidden_state=x, past_key_values=states), return_dict)


class NanoRNNForCausalLM(NanoRNNPreTrainedModel, GenerationMixin):
    """The language model. Its cache, `past_key_values`, is the layers' states."""

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
        """-> logits (B, T, vocab); with labels (B, T), -100 where there is none, the next tokens' mean loss."""
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        with self.low_precision():
            x, states = self.features(input_ids, attention_mask, past_key_values)
            logits = self.model.head(x)
        loss = None
        if labels is not None:
            labels = labels[:, 1:]
            if attention_mask is not None:  # padding before a text foretells nothing
                labels = labels.masked_fill(attention_mask[:, -logits.shape[1] : -1] == 0, -100)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten())
        states = states if use_cache else None
        return self.packed(CausalLMOutputWithPast(loss, logits, past_key_values=states), return_dict)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        """generate() makes no cache: the first forward returns one, unless rows are of different lengths."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, use_cache=None, **kwargs
    ):
        tokens = input_ids if past_key_values is None else input_ids[:, -1:]
        inputs = {"input_ids": tokens, "past_key_values": past_key_values, "attention_mask": attention_mask}
        return inputs | {"use_cache": use_cache}

    def _reorder_cache(self, states, rows):
        """The states of these rows of a batch: beam search drops some and doubles others."""
        if isinstance(states, torch.Tensor):
            return states.index_select(0, rows.to(states.device))
        if isinstance(states, (list, tuple)):
            return type(states)(self._reorder_cache(state, rows) for state in states)
        return states  # how many tokens have been read: the same for all


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
        if module is getattr(self, "score", None):
            nn.init.normal_(module.weight, std=0.02)

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, labels=None, return_dict=None, **kwargs
    ):
        """-> logits (B, labels). The loss of one label is the squared error, of several the cross-entropy."""
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
        return self.packed(SequenceClassifierOutputWithPast(loss, logits), return_dict)
