"""Which token sees which: the one place that says so, for training, prediction and caches alike.

A mask is a function of the positions of queries (..., Q) and keys (..., T) in their history, both int64, and of
`per_item`, K. It returns (..., Q, T) bool, True where the query sees the key.

Another mask may stand in `MASKS`, but none that shows a later item. Such a mask would let training see the padding,
which follows a history's last item, and would make the keys in a cache wrong as soon as an item is appended.
"""

from collections.abc import Callable

from torch import Tensor

Mask = Callable[[Tensor, Tensor, int], Tensor]


def item_block_mask(queries: Tensor, keys: Tensor, per_item: int) -> Tensor:
    """A token sees all tokens of its own item and of earlier items (the paper's attention)."""
    return keys[..., None, :] // per_item <= queries[..., :, None] // per_item


def causal_mask(queries: Tensor, keys: Tensor, per_item: int) -> Tensor:
    """A token sees itself and earlier tokens, as in GPT-2: of its own item, only the codes before (an ablation)."""
    return keys[..., None, :] <= queries[..., :, None]


MASKS: dict[str, Mask] = {"item_block": item_block_mask, "causal": causal_mask}  # by the names of --attention
