"""Key/value caches per user: what a history has cost is kept, and only new items are paid for.

Two things make that possible. Keys and values of a history do not depend on the batch that they were computed in,
because positions count from its first item (protocol `corrected`): a batch's cache can be split, kept per user, and
joined in other company. And no token sees a later item (utils/masks.py), so that they stay as they are when an item
is appended. The letters of the shapes are those of model.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from utils.checkpoint import CODES
from utils.data import token_positions
from utils.errors import InputError


class UserCache(NamedTuple):
    """Keys and values of one user's history of L items, without padding."""

    keys: Tensor  # (layers, heads, T, D / heads)
    values: Tensor  # (layers, heads, T, D / heads)
    items: int  # L


def split_cache(cache: DynamicCache, last: Tensor) -> list[UserCache]:
    """Cut a batch's cache into one per history, each a copy, in the order of `last` (B,) int64 (`SeqBatch.last`)."""
    keys = torch.cat([layer.keys for layer in cache.layers])  # (layers, heads, T, D / heads)
    values = torch.cat([layer.values for layer in cache.layers])
    ends = (last + 1).tolist()  # in items
    starts = dict(zip(sorted(ends), [0, *sorted(ends)], strict=False))  # a history begins where the one before ends
    per_item = keys.shape[2] // max(ends)
    spans = [(slice(starts[end] * per_item, end * per_item), end - starts[end]) for end in ends]
    return [UserCache(*(side[:, :, span].clone() for side in (keys, values)), items) for span, items in spans]


def join_caches(caches: list[UserCache]) -> DynamicCache:
    """The caches of B users as one batch of rows, padded on the left with zeros: (B, heads, longest, D / heads)."""
    keys, values = (
        pad_sequence([side.transpose(0, 2) for side in sides], batch_first=True, padding_side="left")
        for sides in ([cache.keys for cache in caches], [cache.values for cache in caches])
    )  # (B, longest, heads, layers, D / heads)
    joined = DynamicCache()
    for layer in range(keys.shape[3]):
        joined.update(keys[:, :, :, layer].transpose(1, 2), values[:, :, :, layer].transpose(1, 2), layer)
    return joined


@torch.inference_mode()
def append_item(model, caches: list[UserCache], codes: Tensor, embeddings: Tensor) -> tuple[Tensor, list[UserCache]]:
    """Add one item to every user's history and predict the next, at the cost of K tokens per user.

    Args:
        model: a `RecGPT` in evaluation mode.
        caches: one per user, as `split_cache` or this function returned it.
        codes: (B, K) int64 codes of the new items.
        embeddings: (B, E) float32 embeddings of the new items.

    Returns:
        (B, K, V) float32 logits of the next item, and the users' longer caches.

    Raises:
        InputError: a history already fills the window; start again from its most recent items.
        ValueError: not one item for each user, dropout is on, or the model predicts items.
    """
    if model.config.predicts != CODES:
        raise ValueError("append_item is for models that predict codes: call append_hidden")
    hidden, longer = append_hidden(model, caches, codes, embeddings)
    return model.logits(hidden), longer


@torch.inference_mode()
def append_hidden(model, caches: list[UserCache], codes: Tensor, embeddings: Tensor) -> tuple[Tensor, list[UserCache]]:
    """As `append_item`, for models of both kinds: the new items' final hidden states (B, K, D), and longer caches."""
    model.check_predicts()
    _check_new_items(model.config, caches, codes, embeddings)
    per_item = model.config.codes_per_item
    lengths = torch.tensor([[cache.items] for cache in caches], device=codes.device)  # (B, 1)
    positions = token_positions(lengths, per_item)  # (B, K) of the new item's tokens
    slots = torch.arange(int(positions.max()) + 1, device=codes.device)
    keys = slots - (lengths.max() - lengths) * per_item  # (B, T) positions of kept and new keys; padding below 0
    mask = model.gpt2model.rows_mask(positions, keys, per_item)  # (B, 1, K, T)
    inputs, joined = model.fuse(codes[:, None], embeddings[:, None]), join_caches(caches)  # (B, K, D)
    hidden = model.gpt2model(inputs, positions, attention_mask=mask, past_key_values=joined)
    sides = (torch.stack([getattr(layer, side) for layer in joined.layers], 1) for side in ("keys", "values"))
    each = zip(*sides, keys >= 0, caches, strict=True)
    longer = [UserCache(k[:, :, real], v[:, :, real], cache.items + 1) for k, v, real, cache in each]
    return hidden, longer


def _check_new_items(config, caches: list[UserCache], codes: Tensor, embeddings: Tensor) -> None:
    """Raise what `append_item` says of its arguments; `config` is the model's."""
    shapes = (len(caches), config.codes_per_item), (len(caches), config.embedding_width)
    if not caches or (codes.shape, embeddings.shape) != shapes:
        raise ValueError(
            f"codes and embeddings must be one row for each of {len(caches)} users, {shapes[0]} and {shapes[1]}, "
            f"found {tuple(codes.shape)} and {tuple(embeddings.shape)}"
        )
    size = config.codebook.size
    if codes.dtype.is_floating_point or codes.min() < 0 or codes.max() >= size:
        raise ValueError(f"codes must be whole numbers in [0, {size}), found {codes.min()} to {codes.max()}")
    if embeddings.dtype != torch.float32 or not embeddings.isfinite().all():
        raise ValueError("embeddings must be float32 and finite")
    longest = max(cache.items for cache in caches)
    if longest >= config.window:
        raise InputError(
            f"a cached history of {longest} items fills the window of {config.window}. "
            "Compute a new cache from the most recent items."
        )
