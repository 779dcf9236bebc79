"""GPT-2 with item-block attention over histories laid end to end: transformers' blocks around our attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, GPT2Config, GPT2Model

if TYPE_CHECKING:
    from utils.data import Groups  # which histories attention takes together


def item_block_mask(tokens: int, tokens_per_item: int, device: torch.device | None = None) -> Tensor:
    """(T, T) bool, True where a query (row) sees a key (column): all tokens of its own item and of earlier items."""
    item = torch.arange(tokens, device=device) // tokens_per_item
    return item[None, :] <= item[:, None]  # kv // 4 <= q // 4


@torch.compiler.disable  # the groups differ from batch to batch, and each would be compiled anew
def item_block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    groups: Groups | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within each history: what transformers calls in every block.

    Query, key and value are (1, heads, T, D / heads), all histories one after another. Without `groups` they are
    rows, (R, heads, tokens, D / heads), with an `attention_mask` as torch's attention takes it.

    Returns:
        (1 or R, T, heads, D / heads), and no weights.
    """
    if groups is None:
        rows = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling)
        return rows.transpose(1, 2), None
    if key.shape[2] != query.shape[2]:
        raise ValueError("a cache that already holds keys needs rows and a mask in place of groups")
    per_item = query.shape[2] // len(groups.places)
    outputs = []
    for q, k, v in _grouped((query, key, value), groups, per_item):
        mask = item_block_mask(q.shape[2], per_item, q.device)  # hides the padding, too, which comes last
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).unflatten(1, (-1, per_item)).flatten(0, 1))  # (places, K, heads, D / heads)
    return torch.cat(outputs)[groups.places].flatten(0, 1)[None], None


def _grouped(sides: tuple[Tensor, ...], groups: Groups, per_item: int) -> Iterator[tuple[Tensor, ...]]:
    """(1, heads, T, D / heads) each -> per group (histories, heads, tokens of the longest, D / heads) each."""
    sides = tuple(side[0].transpose(0, 1).unflatten(0, (-1, per_item))[groups.padded] for side in sides)
    start = 0
    for histories, items in groups.shapes:
        end = start + histories * items
        yield tuple(side[start:end].unflatten(0, (histories, items)).flatten(1, 2).transpose(1, 2) for side in sides)
        start = end


class GPT2ItemModel(GPT2Model):
    """`transformers.GPT2Model` whose tokens see all tokens of their own item, not only the earlier ones."""

    def __init__(self, config: GPT2Config):
        AttentionInterface.register("item_block", item_block_attention)
        torch.backends.cuda.enable_cudnn_sdp(False)  # 21 times slower with these shapes (docs/log.md)
        config._attn_implementation = "item_block"
        super().__init__(config)
        # GPT-2's start of what ends a residual branch, which transformers 5 leaves out for subclasses made elsewhere.
        for block in self.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(projection.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        groups: Groups | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """(1, T, D) input embeddings and (1, T) int64 positions -> (1, T, D) final hidden states.

        Args:
            inputs_embeds: all histories one after another; or rows (R, T, D), with a mask instead of groups.
            position_ids: places in the position embedding.
            groups: which slots attention takes together.
            attention_mask: for rows, (R, 1, T, keys).
            past_key_values: receives keys and values; with rows it may hold earlier ones, which come first. Not with
                `last`.
            last: (B,) int64 slots of the histories' last items: the last block computes only these. Returns (B, K, D).
        """
        if last is not None and past_key_values is not None:
            raise ValueError(
                "the last block keeps no keys where it computes the last items only: leave out one of both"
            )
        hidden = self.drop(inputs_embeds + self.wpe(position_ids))
        for block in self.h if last is None else self.h[:-1]:
            hidden = block(hidden, past_key_values, attention_mask, groups=groups)
        return self.ln_f(hidden if last is None else last_items(self.h[-1], hidden, groups, last))


def last_items(block: nn.Module, hidden: Tensor, groups: Groups, last: Tensor) -> Tensor:
    """A block's output where prediction reads it: (1, T, D) and (B,) int64 item slots -> (B, K, D), without dropout.

    Keys and values need every token, queries and all that follows only those of the last items.
    """
    attention, per_item = block.attn, hidden.shape[1] // len(groups.places)
    slots = last.sort().values  # histories in the order of the groups
    lengths = slots.diff(prepend=slots.new_tensor([-1])) * per_item  # (B,) tokens
    tokens = block.ln_1(hidden[0])  # (T, D)
    weight, bias = attention.c_attn.weight, attention.c_attn.bias  # (D, 3D) and (3D,): queries, keys, values
    width = len(weight)
    keys_values = torch.addmm(bias[width:], tokens, weight[:, width:]).unflatten(1, (2, -1, attention.head_dim))
    key, value = keys_values.permute(1, 2, 0, 3)[:, None]  # (1, heads, T, D / heads) each
    query = tokens.unflatten(0, (-1, per_item))[slots] @ weight[:, :width] + bias[:width]  # (B, K, D)
    query = query.unflatten(2, (-1, attention.head_dim)).transpose(1, 2)  # (B, heads, K, D / heads)

    outputs, start = [], 0
    for k, v in _grouped((key, value), groups, per_item):
        end = start + len(k)
        real = torch.arange(k.shape[2], device=k.device) < lengths[start:end, None]  # (histories, tokens)
        outputs.append(F.scaled_dot_product_attention(query[start:end], k, v, real[:, None, None]))
        start = end
    out = torch.cat(outputs).transpose(1, 2).flatten(2)  # (B, K, D)
    out = hidden[0].unflatten(0, (-1, per_item))[slots] + attention.c_proj(out)
    out = out + block.mlp(block.ln_2(out))
    return out[torch.searchsorted(slots, last)]
