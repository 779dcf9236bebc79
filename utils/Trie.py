"""The catalog as a prefix index: sorted arrays in place of nodes, so that 15 million items are a few arrays."""

import numpy as np
import torch
from torch import Tensor

from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM


class Trie:
    """Prefix tree over the codes of a catalog.

    Items are sorted by their four codes, ties by ascending id. A node of depth d is a run of that order that shares
    its first d codes, named by its rank among the runs of depth d; the single node of depth 0 is the root.

    Attributes:
        codes: (N, K) int16, sorted.
        items: (N,) int64 item ids in the same order.
        starts: K + 1 tensors; `starts[d]` is (nodes of depth d, plus one) int64: where each run begins, then N.
    """

    def __init__(self, codes: np.ndarray | Tensor, items: np.ndarray | Tensor | None = None):
        """Build from codes (N, K) of any integer type; `items` (N,) are their ids, 0 to N - 1 by default.

        Raises:
            ValueError: codes are not (N, 4) integers in [0, 15360).
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != CODES_PER_ITEM or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be (N, {CODES_PER_ITEM}) integers, found {codes.shape} {codes.dtype}")
        if codes.size and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
            raise ValueError(f"codes must lie in [0, {CODEBOOK_SIZE}), found {codes.min()} to {codes.max()}")
        ids = np.arange(len(codes)) if items is None else np.asarray(items, dtype=np.int64)
        if items is not None:  # ties are broken by position below
            by_id = np.argsort(ids, kind="stable")
            codes, ids = codes[by_id], ids[by_id]
        order = np.argsort(_keys(codes), kind="stable")
        self._set(codes[order].astype(np.int16), ids[order])

    def _set(self, codes: np.ndarray, items: np.ndarray) -> None:
        differs = np.ones((len(codes), CODES_PER_ITEM), dtype=bool)  # first d + 1 codes differ from the item before
        np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1, out=differs[1:])
        self.codes = torch.from_numpy(codes)
        self.items = torch.from_numpy(items)
        self.starts = [torch.tensor([0, len(codes)])]
        for depth in range(CODES_PER_ITEM):
            runs = np.append(np.flatnonzero(differs[:, depth]), len(codes))
            self.starts.append(torch.from_numpy(runs))

    def __len__(self) -> int:
        return len(self.items)

    def to(self, device: torch.device | str) -> "Trie":
        """The same index on another device."""
        moved = object.__new__(Trie)
        moved.codes, moved.items = self.codes.to(device), self.items.to(device)
        moved.starts = [start.to(device) for start in self.starts]
        return moved

    def node_codes(self, nodes: Tensor, depth: int) -> Tensor:
        """The last code of the prefixes that nodes of a depth >= 1 stand for: (...) int64 -> (...) int64."""
        return self.codes[self.starts[depth][nodes], depth - 1].long()

    def children(self, nodes: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """First and one-past-last child, nodes of depth + 1, of nodes (...) int64 of `depth`; ascending by code."""
        below, here = self.starts[depth + 1], self.starts[depth]
        return torch.searchsorted(below, here[nodes]), torch.searchsorted(below, here[nodes + 1])

    def find(self, prefixes: Tensor) -> Tensor:
        """Node of each prefix (..., d), 0 <= d <= K, among those of depth d, or -1 where no item has it: (...) int64.

        One binary search per code, over all prefixes at once.
        """
        nodes = torch.zeros(prefixes.shape[:-1], dtype=torch.int64, device=self.items.device)
        if not len(self):
            return nodes - 1
        missing = torch.zeros_like(nodes, dtype=torch.bool)
        for depth in range(prefixes.shape[-1]):
            wanted = prefixes[..., depth]
            low, high = self.children(nodes, depth)
            last = high - 1
            while (low < last).any():
                middle = (low + last) // 2
                right = self.node_codes(middle, depth + 1) < wanted
                low, last = torch.where(right, middle + 1, low), torch.where(right, last, middle)
            missing |= self.node_codes(low, depth + 1) != wanted
            nodes = low
        return nodes.masked_fill(missing, -1)

    def has_prefix(self, prefixes: Tensor) -> Tensor:
        """Whether any item starts with the codes of (..., d): (...) bool."""
        return self.find(prefixes) >= 0

    def has_item(self, codes: Tensor) -> Tensor:
        """Whether any item has exactly the codes (..., K): (...) bool."""
        return self.has_prefix(codes)

    def next_codes(self, prefix: Tensor) -> Tensor:
        """Codes that may follow one prefix (d,), ascending; empty where no item has the prefix."""
        depth, node = len(prefix), self.find(prefix[None])
        if node.item() < 0:
            return torch.empty(0, dtype=torch.int64)
        first, end = self.children(node, depth)
        return self.node_codes(torch.arange(first.item(), end.item(), device=self.items.device), depth + 1)

    def items_of(self, codes: Tensor) -> Tensor:
        """Ids of all items with exactly these K codes, ascending; empty where there are none."""
        node = self.find(codes[None]).item()
        if node < 0:
            return self.items[:0]
        return self.items[self.starts[CODES_PER_ITEM][node] : self.starts[CODES_PER_ITEM][node + 1]]

    def restrict(self, allowed: np.ndarray) -> "Trie":
        """The index of a subset (in stock, not yet seen); `allowed` is a bool mask over item ids. Nothing is sorted."""
        keep = np.asarray(allowed, dtype=bool)[self.items.numpy()]
        subset = object.__new__(Trie)
        subset._set(self.codes.numpy()[keep], self.items.numpy()[keep])
        return subset

    def extend(self, codes: np.ndarray, items: np.ndarray) -> "Trie":
        """The index with new items (M, K) of the given ids (M,) merged into the sorted order."""
        new = Trie(codes, items)
        # Codes, then ids: an old item goes before a new one of the same codes exactly when its id is smaller.
        all_codes = np.concatenate([self.codes.numpy(), new.codes.numpy()])
        all_items = np.concatenate([self.items.numpy(), new.items.numpy()])
        order = np.lexsort((all_items, _keys(all_codes)))
        grown = object.__new__(Trie)
        grown._set(all_codes[order], all_items[order])
        return grown


def _keys(codes: np.ndarray) -> np.ndarray:
    """(N, K) codes -> (N,) int64 whose order is that of the codes; 15360**4 fits in 56 bits."""
    keys = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T:
        keys = keys * CODEBOOK_SIZE + column
    return keys
