"""Sequences, catalogs and batches: from histories of item ids to the tensors that the model reads.

Letters of the shapes, here and in the other files of utils/: U users, or histories, of a file, B of a batch; L items of
one history, S item slots of all histories of a batch, P positions in its attention groups (S and padding); K codes of
an item, 4 in the release; T tokens (K * L or K * S); N items of the catalog, M that may be recommended; E width of an
item embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.fsq import PUBLISHED, Codebook
from utils.util import check_count, numbers_below

WINDOW = 256  # items of a history that the published model reads: 1,024 tokens, the rows of its position embedding
GROUP_PADDING = 0.125  # at most this part of a history's positions in its attention group is padding
IGNORED = -100  # stands where there is no target code; torch's cross-entropy leaves it out


@dataclass(frozen=True)
class Sequences:
    """Many histories as one flat array: user i's items are `items[offsets[i]:offsets[i + 1]]`."""

    users: np.ndarray | None  # (U,) int64 or object, the keys of the file in its order; None where nobody needs them
    items: np.ndarray  # (sum of lengths,) int32 or int64, item ids in time order
    offsets: np.ndarray  # (U + 1,) int64

    @classmethod
    def of(cls, *lists: list[int] | np.ndarray) -> "Sequences":
        """Histories given as lists of item ids, of users 0, 1, …"""
        items = np.array([item for items in lists for item in items], dtype=np.int64)
        return cls(np.arange(len(lists)), items, cumulate(np.array([len(items) for items in lists])))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items per history."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "Sequences":
        """The histories of some rows (n,), in that order; ValueError for a row that does not exist."""
        rows = numbers_below(rows, len(self), "rows")
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts  # self.lengths would read the offsets of all users
        users = None if self.users is None else self.users[rows]
        return Sequences(users, self.items[spans(starts, lengths)], cumulate(lengths))

    def lists(self) -> list[list[int]]:
        """The items of each history as a list."""
        flat = self.items.tolist()
        return [flat[start:end] for start, end in pairwise(self.offsets.tolist())]

    def last(self, window: int) -> "Sequences":
        """Every history cut to its most recent `window` items; ValueError for a window below 1."""
        check_count(window, "window")
        lengths = np.minimum(self.lengths, window)
        return Sequences(self.users, self.items[spans(self.offsets[1:] - lengths, lengths)], cumulate(lengths))

    def below(self, count: int) -> "Sequences":
        """Every history without items of `count` or more; some may become empty."""
        kept, user = self.items < count, np.repeat(np.arange(len(self)), self.lengths)
        lengths = np.bincount(user[kept], minlength=len(self))
        return Sequences(self.users, self.items[kept], cumulate(lengths))

    def split_targets(self) -> tuple["Sequences", np.ndarray]:
        """Split every history into all but its last item, and that item, (U,); ValueError for an empty history."""
        lengths = self.lengths - 1
        if len(lengths) and lengths.min() < 0:
            raise ValueError(f"history {lengths.argmin()} is empty: it has no last item")
        histories = self.items[spans(self.offsets[:-1], lengths)]
        return Sequences(self.users, histories, cumulate(lengths)), self.items[self.offsets[1:] - 1]


def cumulate(lengths: np.ndarray) -> np.ndarray:
    """(U,) lengths -> (U + 1,) int64 offsets, from 0 on."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges [start, start + length) into one int64 index array, without a loop."""
    offsets = cumulate(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


@dataclass(frozen=True)
class Catalog:
    """Codes and text embeddings of every item, by item id."""

    codes: np.ndarray  # (N, K) int16
    embeddings: np.ndarray  # (rows, E) float, usually memory-mapped
    rows: np.ndarray | None = None  # (N,) int64, row of each item in `embeddings`; None where item i has row i
    source: str = "the embedding matrix"  # its file, for messages
    codebook: Codebook = PUBLISHED  # that the codes are of

    def __len__(self) -> int:
        return len(self.codes)

    def embed(self, items: np.ndarray) -> np.ndarray:
        """Read the embeddings of items (n,) from the matrix: (n, E) float32.

        Raises:
            InputError: an embedding is not finite.
            ValueError: an item has no row.
        """
        rows = items if self.rows is None else self.rows[numbers_below(items, len(self.rows), "items")]
        rows = numbers_below(rows, len(self.embeddings), "rows of the catalog")
        embeddings = np.asarray(self.embeddings[rows], dtype=np.float32)
        check_finite(embeddings, rows, self.source)
        return embeddings

    def codes_of(self, items: np.ndarray) -> Tensor:
        """Codes of items (n,): (n, K) int64; ValueError unless every item has K codes of the codebook."""
        codes, per_item = self.codes[items], self.codebook.per_item
        if codes.ndim != 2 or codes.shape[1] != per_item or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be (N, {per_item}) whole numbers, found {codes.shape} {codes.dtype}")
        return torch.from_numpy(numbers_below(codes.ravel(), self.codebook.size, "codes").reshape(codes.shape))


def check_finite(embeddings: np.ndarray, rows: np.ndarray | int, source: str) -> None:
    """InputError naming the first of some embeddings (n, E) that holds NaN or infinity, and its file, `source`.

    `rows` are their rows in the file, (n,) int64, or the first one where they are consecutive.
    """
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        row = rows + first if isinstance(rows, int) else rows[first]
        raise InputError(
            f"{source}, row {row}: the embedding holds NaN or infinity. "
            "Encode this item's text again (data_processing/TextEncoder_batch.py)."
        )


@dataclass(frozen=True)
class Groups:
    """Which histories attention takes together: those of like lengths, padded to the longest of their group.

    It is a dataclass because torch.compile looks into a tuple, and would compile anew for every batch's shapes.
    """

    padded: Tensor  # (P,) int64, item slot at every position of the groups, one group after another
    unpadded: Tensor  # (S,) int64, position of every item slot: the inverse of `padded`
    shapes: tuple[tuple[int, int], ...]  # histories, and items of the longest, of each group in the order of the slots

    @property
    def alike(self) -> bool:
        """Whether all histories are of one length, as a single one is, so that there is nothing to pad."""
        return len(self.shapes) == 1 and len(self.padded) == len(self.unpadded)


class SeqBatch(NamedTuple):
    """B histories laid end to end, longest first, without padding."""

    codes: Tensor  # (S, K) int64
    embeddings: Tensor  # (S, E) float32
    positions: Tensor  # (S,) int64, of each item in its history, as the position embedding counts
    last: Tensor  # (B,) int64, slot of each history's last item: for a prediction in the order of the users
    groups: Groups
    targets: Tensor | None = None  # (S, K) int64, in training: the codes of each slot's next item, or IGNORED
    last_only: bool = False  # whether the targets are those of the last slots only, (B, K)
    target_items: Tensor | None = None  # (S,) int64, or (B,) with last_only: the ids of the targets, or IGNORED

    def without_targets(self) -> "SeqBatch":
        """The same batch with a loss of 0, for a process that has no batch left but must run along with the others."""
        nothing = {name: torch.full_like(getattr(self, name), IGNORED) for name in ("targets", "target_items")}
        return self._replace(**nothing)

    def to(self, device: torch.device) -> "SeqBatch":
        """The same batch on another device."""
        return self._on(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "SeqBatch":
        """The same batch in page-locked memory, which a GPU can read while it computes."""
        return self._on(Tensor.pin_memory)

    def _on(self, move: Callable[[Tensor], Tensor]) -> "SeqBatch":
        groups = Groups(move(self.groups.padded), move(self.groups.unpadded), self.groups.shapes)
        targets, items = (None if side is None else move(side) for side in (self.targets, self.target_items))
        return SeqBatch(*(move(tensor) for tensor in self[:4]), groups, targets, self.last_only, items)


def make_batch(sequences: Sequences, catalog: Catalog, left_padded: bool = False) -> SeqBatch:
    """The batch from which the item after each history's last one is predicted.

    Args:
        sequences: the B histories, none empty, in any order.
        catalog: codes and embeddings of their items.
        left_padded: count positions as the published program does, which pads histories on the left to the longest
            of the batch (protocol `released`), instead of from each one's first item (`corrected`).

    Raises:
        ValueError: no history or an empty one, or an item id that is none of the catalog or has no codes there.
    """
    check_histories(sequences, catalog)
    rows = np.argsort(-sequences.lengths, kind="stable")
    batch = batch_of_sorted(sequences.select(rows), catalog, left_padded)
    last = torch.empty_like(batch.last)
    last[torch.from_numpy(rows)] = batch.last
    return batch._replace(last=last)


def training_batch(sequences: Sequences, catalog: Catalog, last_only: bool = False) -> SeqBatch:
    """The batch in which every item but a history's first is a target, predicted at the slot of the item before.

    A history's last item is a target only and is not read, so that a history of one item takes no part. The histories
    may come in any order. With `last_only` the last items are the only targets.

    Raises:
        ValueError: no history of two items, an empty one, or an item id that is none of the catalog.
    """
    check_histories(sequences, catalog)
    lengths = sequences.lengths - 1  # items that are read
    rows = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    if not len(rows):
        raise ValueError("there is no history of two items, an item to read and one to predict")
    slots = spans(sequences.offsets[rows], lengths[rows])  # (S,) where the items that are read stand
    read = Sequences(None, sequences.items[slots], cumulate(lengths[rows]))
    batch = batch_of_sorted(read, catalog)
    predicted_at = slots[batch.last.numpy()] if last_only else slots
    items = sequences.items[predicted_at + 1]
    ids = torch.from_numpy(items.astype(np.int64))
    return batch._replace(targets=catalog.codes_of(items), last_only=last_only, target_items=ids)


def batch_of_sorted(sequences: Sequences, catalog: Catalog, left_padded: bool = False) -> SeqBatch:
    """What `make_batch` and `training_batch` share: a batch of B histories that are sorted already, longest first."""
    lengths = sequences.lengths
    return SeqBatch(
        catalog.codes_of(sequences.items),
        torch.from_numpy(catalog.embed(sequences.items)),
        torch.from_numpy(spans(lengths[0] - lengths if left_padded else np.zeros_like(lengths), lengths)),
        torch.from_numpy(sequences.offsets[1:] - 1),
        group_by_length(lengths),
    )


def check_histories(sequences: Sequences, catalog: Catalog) -> None:
    """ValueError unless there are histories, none empty, of items that the catalog has."""
    for name, kinds in (("items", "iu"), ("offsets", "i")):
        array = getattr(sequences, name)
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} must be a one-dimensional array of whole numbers, found {found}")
    if len(sequences):
        numbers_below(sequences.offsets[[0, -1]], len(sequences.items) + 1, "offsets")
    lengths = sequences.lengths
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(f"history {lengths.argmin()} of the batch is empty" if len(lengths) else "there is no history")
    low, high = sequences.items.min(), sequences.items.max()
    if low < 0 or high >= len(catalog):
        raise ValueError(
            f"item id {low if low < 0 else high} is none of the catalog, which has 0 to {len(catalog) - 1}"
        )


def token_positions(items: Tensor, per_item: int) -> Tensor:
    """Positions of items (..., S) int64 -> positions of their tokens (..., T) int64, `per_item`, K, to an item."""
    return (items[..., None] * per_item + torch.arange(per_item, device=items.device)).flatten(-2)


def group_by_length(lengths: np.ndarray) -> Groups:
    """Group histories of lengths (B,), longest first: one joins while its length is 7/8 of the group's longest or more.

    ValueError for no lengths, one below 1, or another order, in which items would be lost.
    """
    if lengths.ndim != 1 or not len(lengths) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths must be (B,) whole numbers, found {lengths.shape} {lengths.dtype}")
    lengths = lengths.astype(np.int64, copy=False)
    if lengths[-1] < 1 or (np.diff(lengths) > 0).any():
        raise ValueError(f"lengths must be 1 or more, longest first, found {lengths[:5]}…")
    shapes, padded, start = [], [], 0
    offsets = cumulate(lengths)
    while start < len(lengths):
        longest = lengths[start]
        end = int(np.searchsorted(-lengths, -longest * (1 - GROUP_PADDING), side="right"))
        shapes.append((end - start, int(longest)))
        items = np.minimum(np.arange(longest), lengths[start:end, None] - 1)  # padding repeats the last item
        padded.append((offsets[start:end, None] + items).ravel())
        start = end
    starts = cumulate(np.repeat([longest for _, longest in shapes], [histories for histories, _ in shapes]))
    return Groups(
        torch.from_numpy(np.concatenate(padded)), torch.from_numpy(spans(starts[:-1], lengths)), tuple(shapes)
    )
