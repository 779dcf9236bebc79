"""Per-user key/value caches: keep what a user's history has cost, and pay only for the items that are new.

With positions that count from the first item (protocol `corrected`) keys and values of a history do not depend on the
batch they were computed in, so that caches can be split, kept per user, and joined in other company.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from utils.data import SeqBatch
from utils.errors import InputError
from utils.fsq import CODES_PER_ITEM


class UserCache(NamedTuple):
    """Keys and values of one user's history, without padding; T = 4L."""

    keys: Tensor  # (layers, heads, T, D / heads)
    values: Tensor  # (layers, heads, T, D / heads)

    @property
    def items(self) -> int:
        """Items in the cache."""
        return self.keys.shape[2] // CODES_PER_ITEM


def split_cache(cache: DynamicCache, history: Tensor) -> list[UserCache]:
    """A batch's cache cut into one per row; `history` (R, L) int64 is -1 at padding. One history per row."""
    keys = torch.stack([layer.keys for layer in cache.layers])  # (layers, R, heads, T, D / heads)
    values = torch.stack([layer.values for layer in cache.layers])
    real = (history >= 0).repeat_interleave(CODES_PER_ITEM, dim=1)  # (R, T)
    return [UserCache(keys[:, row][:, :, kept], values[:, row][:, :, kept]) for row, kept in enumerate(real)]


def join_caches(caches: list[UserCache]) -> tuple[DynamicCache, Tensor]:
    """Users' caches as one batch, padded on the left; and (R, L) int64 the slots' history, -1 at padding."""
    longest = max(cache.items for cache in caches)
    device = caches[0].keys.device
    history = torch.full((len(caches), longest), -1, device=device)
    layers, heads, _, width = caches[0].keys.shape
    keys = torch.zeros(layers, len(caches), heads, longest * CODES_PER_ITEM, width, device=device)
    values = torch.zeros_like(keys)
    for row, cache in enumerate(caches):
        history[row, longest - cache.items :] = row
        first = (longest - cache.items) * CODES_PER_ITEM
        keys[:, row, :, first:] = cache.keys
        values[:, row, :, first:] = cache.values
    joined = DynamicCache()
    for layer in range(layers):
        joined.update(keys[layer], values[layer], layer)
    return joined, history


@torch.inference_mode()
def append_item(model, caches: list[UserCache], codes: Tensor, embeddings: Tensor) -> tuple[Tensor, list[UserCache]]:
    """Add one item to every user's history and predict the next, at the cost of four tokens per user.

    Args:
        model: a `RecGPT` in evaluation mode.
        caches: one per user, as `split_cache` or this function gave it.
        codes: (B, K) int64 codes of the new items.
        embeddings: (B, E) float32 embeddings of the new items.

    Returns:
        (B, K, V) float32 logits of the next item, and the users' longer caches.

    Raises:
        InputError: a history already fills the window; start again from its most recent items.
    """
    longest = max(cache.items for cache in caches)
    if longest >= model.config.window:
        raise InputError(
            f"a cached history of {longest} items fills the window of {model.config.window}. "
            "Compute a new cache from the most recent items."
        )
    joined, cached_history = join_caches(caches)
    user = torch.arange(len(caches), device=codes.device)
    positions = torch.tensor([cache.items for cache in caches], device=codes.device)
    batch = SeqBatch(codes[:, None], embeddings[:, None], user[:, None], positions[:, None], user)
    logits = model.next_item_logits(batch, joined, cached_history)
    return logits, split_cache(joined, torch.cat([cached_history, batch.history], dim=1))
