"""Per-user key/value caches: keep what a user's history has cost, and pay only for the items that are new.

With positions that count from the first item (protocol `corrected`) keys and values of a history do not depend on the
batch they were computed in, so that caches can be split, kept per user, and joined in other company.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from utils.data import token_positions
from utils.errors import InputError
from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM


class UserCache(NamedTuple):
    """Keys and values of one user's history, without padding; T = 4L."""

    keys: Tensor  # (layers, heads, T, D / heads)
    values: Tensor  # (layers, heads, T, D / heads)

    @property
    def items(self) -> int:
        """Items in the cache."""
        return self.keys.shape[2] // CODES_PER_ITEM


def split_cache(cache: DynamicCache, last: Tensor) -> list[UserCache]:
    """A batch's cache cut into one per history, each a copy; `last` (B,) int64 are the batch's last item slots."""
    keys = torch.cat([layer.keys for layer in cache.layers])  # (layers, heads, T, D / heads)
    values = torch.cat([layer.values for layer in cache.layers])
    ends = ((last.sort().values + 1) * CODES_PER_ITEM).tolist()
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    caches = [
        UserCache(*(side.clone() for side in sides))
        for sides in zip(keys.split(lengths, 2), values.split(lengths, 2), strict=True)
    ]
    return [caches[history] for history in torch.searchsorted(last.sort().values, last).tolist()]


def join_caches(caches: list[UserCache]) -> tuple[DynamicCache, Tensor]:
    """Users' caches as one batch of rows, padded on the left; and (B, T) bool, True where a slot is real."""
    longest = max(cache.keys.shape[2] for cache in caches)
    layers, heads, _, width = caches[0].keys.shape
    keys = caches[0].keys.new_zeros(layers, len(caches), heads, longest, width)
    values = torch.zeros_like(keys)
    real = torch.zeros(len(caches), longest, dtype=torch.bool, device=keys.device)
    for row, cache in enumerate(caches):
        first = longest - cache.keys.shape[2]
        real[row, first:] = True
        keys[:, row, :, first:] = cache.keys
        values[:, row, :, first:] = cache.values
    joined = DynamicCache()
    for layer in range(layers):
        joined.update(keys[layer], values[layer], layer)
    return joined, real


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
        ValueError: not one item for each user, or dropout is on.
    """
    model.check_predicts()
    shapes = (len(caches), CODES_PER_ITEM), (len(caches), model.config.embedding_width)
    if not caches or (codes.shape, embeddings.shape) != shapes:
        raise ValueError(
            f"codes and embeddings must be one row for each of {len(caches)} users, {shapes[0]} and {shapes[1]}, "
            f"found {tuple(codes.shape)} and {tuple(embeddings.shape)}"
        )
    if codes.dtype.is_floating_point or codes.min() < 0 or codes.max() >= CODEBOOK_SIZE:
        raise ValueError(f"codes must be whole numbers in [0, {CODEBOOK_SIZE}), found {codes.min()} to {codes.max()}")
    if embeddings.dtype != torch.float32 or not embeddings.isfinite().all():
        raise ValueError("embeddings must be float32 and finite")
    longest = max(cache.items for cache in caches)
    if longest >= model.config.window:
        raise InputError(
            f"a cached history of {longest} items fills the window of {model.config.window}. "
            "Compute a new cache from the most recent items."
        )
    joined, real = join_caches(caches)
    real = F.pad(real, (0, CODES_PER_ITEM), value=True)  # and the new item's own tokens
    positions = token_positions(torch.tensor([[cache.items] for cache in caches], device=codes.device))  # (B, K)
    inputs = model.fuse(codes[:, None], embeddings[:, None])  # (B, K, D)
    hidden = model.gpt2model(inputs, positions, attention_mask=real[:, None, None], past_key_values=joined)
    keys, values = (torch.stack([getattr(layer, side) for layer in joined.layers], 1) for side in ("keys", "values"))
    longer = [UserCache(k[:, :, kept], v[:, :, kept]) for k, v, kept in zip(keys, values, real, strict=True)]
    return model.pred_head(hidden).float(), longer
