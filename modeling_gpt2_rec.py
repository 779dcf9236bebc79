"""GPT-2 with item-block attention over histories laid end to end: transformers' blocks around our own attention.

The model's `mask` (utils/masks.py) alone says which token sees which: in training, in the last block of a prediction
(`last_items`) and where an item is appended to a cache (utils/past_key_values.py). The letters of the shapes are those
of model.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, Cache, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from utils.masks import Mask

if TYPE_CHECKING:
    from utils.data import Groups

# On a GPU. cuDNN's attention is left out: with these shapes it is 21 times slower (docs/log.md).
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@lru_cache(maxsize=256)  # lengths; the masks of every length up to 256 items take 90 MB
@torch.inference_mode(False)  # a tensor made in inference mode, in a prediction, could not serve training later
def history_mask(mask: Mask, tokens: int, per_item: int, device: torch.device) -> Tensor:
    """`mask` between all tokens of a history, (tokens, tokens) bool; made once for each length and device."""
    positions = torch.arange(tokens, device=device)
    return mask(positions, positions, per_item)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """torch's attention of (R, heads, Q, D / heads) queries: the same shape; on a GPU by the kernels named above."""
    with sdpa_kernel(ATTENTION_KERNELS) if query.is_cuda else nullcontext():
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)


@torch.compiler.disable  # groups differ from batch to batch, and each would be compiled anew
def item_block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    groups: Groups | None = None,
    mask: Mask | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within each history. Every block calls it, with the arguments that transformers gives.

    Query, key and value are (1, heads, T, D / heads), all histories one after another, in each of which `mask` says
    which token sees which. Without `groups` they are R rows instead, (R, heads, tokens, D / heads), with an
    `attention_mask` as torch's attention takes it.

    Returns:
        (1 or R, T, heads, D / heads), and None in place of the attention weights.
    """
    if groups is None:
        return attend(query, key, value, attention_mask, dropout, scaling).transpose(1, 2), None
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            "with a cache that holds keys, give rows and attention_mask in place of groups (see append_item)"
        )
    per_item = query.shape[2] // len(groups.unpadded)
    outputs = []
    for q, k, v in split_groups((query, key, value), groups, per_item):
        visible = history_mask(mask, q.shape[2], per_item, q.device)
        out = attend(q, k, v, visible, dropout, scaling)  # (histories, heads, tokens, D / heads)
        outputs.append(out.transpose(1, 2).unflatten(1, (-1, per_item)).flatten(0, 1))  # (slots, K, heads, D / heads)
    out = outputs[0] if groups.alike else torch.cat(outputs)[groups.unpadded]  # (P, K, …) -> (S, K, …)
    return out.flatten(0, 1)[None], None  # (1, T, …)


def split_groups(sides: tuple[Tensor, ...], groups: Groups, per_item: int) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys or values (1, heads, T, D / heads) by group: (histories, heads, tokens, D / heads), padded."""
    sides = tuple(side[0].transpose(0, 1).unflatten(0, (-1, per_item)) for side in sides)  # (S, K, …)
    if not groups.alike:
        sides = tuple(side[groups.padded] for side in sides)  # (P, K, …)
    start = 0
    for histories, items in groups.shapes:
        end = start + histories * items
        yield tuple(side[start:end].unflatten(0, (histories, items)).flatten(1, 2).transpose(1, 2) for side in sides)
        start = end


class GPT2ItemModel(GPT2Model):
    """`transformers.GPT2Model` with the attention of this file, in which `mask` says which token sees which."""

    def __init__(self, config: GPT2Config, mask: Mask):
        AttentionInterface.register("item_block", item_block_attention)
        config._attn_implementation = "item_block"
        super().__init__(config)
        self.mask = mask
        # transformers 5 scales the last projections of a block only in its own classes, not in subclasses like this.
        for block in self.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(projection.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))

    def rows_mask(self, queries: Tensor, keys: Tensor, per_item: int) -> Tensor:
        """The mask for R rows: (R, 1, Q, T) bool of queries (R, Q) and keys (R, T); below 0 is padding."""
        return (self.mask(queries, keys, per_item) & (keys >= 0)[:, None])[:, None]

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        groups: Groups | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (1, T, D) of input embeddings (1, T, D).

        Args:
            inputs_embeds: all histories one after another; or R rows, (R, T, D), with a mask in place of groups.
            position_ids: (1, T) or (R, T) int64, rows of the position embedding.
            groups: the histories that attention takes together.
            attention_mask: of rows, (R, 1, T, keys).
            past_key_values: receives keys and values. With rows it may hold earlier ones, which come first.
            last: (B,) int64 item slots of the histories' last items. The last block then computes only these, and the
                result is (B, K, D).

        Raises:
            ValueError: both `past_key_values` and `last`, since the last block would leave keys out.
        """
        if last is not None and past_key_values is not None:
            raise ValueError("the last block keeps no keys where it computes the last items only: leave out one")
        hidden = self.drop(inputs_embeds + self.wpe(position_ids))
        for block in self.h if last is None else self.h[:-1]:
            hidden = block(hidden, past_key_values, attention_mask, groups=groups, mask=self.mask)
        return self.ln_f(hidden if last is None else last_items(self.h[-1], hidden, groups, last, self.mask))


def last_items(block: nn.Module, hidden: Tensor, groups: Groups, last: Tensor, mask: Mask) -> Tensor:
    """A block's output at the last item of every history, where prediction reads it; without dropout.

    Its input `hidden` is (1, T, D), `last` (B,) int64 are the item slots; returns (B, K, D) in their order. Keys and
    values are needed of every token, queries and all that follows only of the last items.
    """
    attention, per_item = block.attn, hidden.shape[1] // len(groups.unpadded)
    slots = last.sort().values  # (B,) in the order of the groups
    tokens = block.ln_1(hidden[0])  # (T, D)
    picked = tokens.unflatten(0, (-1, per_item))[slots]  # (B, K, D)
    if isinstance(attention.c_attn, Conv1D):
        weight, bias = attention.c_attn.weight, attention.c_attn.bias  # (D, 3D) and (3D,): queries, keys, values
        width = len(weight)
        keys_values = torch.addmm(bias[width:], tokens, weight[:, width:])  # (T, 2D)
        query = picked @ weight[:, :width] + bias[:width]  # (B, K, D)
    else:  # of serving/half.py
        keys_values, query = attention.c_attn.keys_values(tokens), attention.c_attn.query(picked)
    keys_values = keys_values.unflatten(1, (2, -1, attention.head_dim))
    key, value = keys_values.permute(1, 2, 0, 3)[:, None]  # (T, 2, heads, D / heads) -> (1, heads, T, D / heads) each
    query = query.unflatten(2, (-1, attention.head_dim)).transpose(1, 2)  # (B, heads, K, D / heads)

    # Histories lie end to end, so that each length is the distance from the last slot of the history before.
    lengths = slots.diff(prepend=slots.new_tensor([-1])) * per_item  # (B,) tokens
    positions = lengths[:, None] + torch.arange(-per_item, 0, device=last.device)  # (B, K) of the last item's tokens
    outputs, start = [], 0
    for k, v in split_groups((key, value), groups, per_item):
        end = start + len(k)
        visible = mask(positions[start:end], torch.arange(k.shape[2], device=k.device), per_item)
        outputs.append(attend(query[start:end], k, v, visible[:, None]))  # visible: (histories, 1, K, tokens)
        start = end
    out = torch.cat(outputs).transpose(1, 2).flatten(2)  # (B, K, D)
    out = hidden[0].unflatten(0, (-1, per_item))[slots] + attention.c_proj(out)
    out = out + block.mlp(block.ln_2(out))
    return out[torch.searchsorted(slots, last)]
