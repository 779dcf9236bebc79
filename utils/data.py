"""Sequences, catalogs and batches: from histories of item ids to the tensors the model reads."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM
from utils.util import check_count, numbers_below

WINDOW = 256  # items: 1,024 tokens, the rows of the position embedding
GROUP_PADDING = 0.125  # of a history's places in its attention group, at most
IGNORED = -100  # in place of a target code: what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Sequences:
    """Many histories as one flat array: user i's items are `items[offsets[i]:offsets[i + 1]]`."""

    users: np.ndarray | None  # (U,) int64 or object: the keys of the file, in its order; None where nobody asks
    items: np.ndarray  # (sum of lengths,) int32 or int64 item ids in time order
    offsets: np.ndarray  # (U + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items per history."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "Sequences":
        """The histories of the given rows, in that order; ValueError for rows that are none."""
        rows = numbers_below(rows, len(self), "rows")
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts  # not by self.lengths, which reads the offsets of all users
        users = None if self.users is None else self.users[rows]
        return Sequences(users, self.items[spans(starts, lengths)], cumulate(lengths))

    def lists(self) -> list[list[int]]:
        """The items of each history as a list."""
        flat = self.items.tolist()
        return [flat[start:end] for start, end in pairwise(self.offsets.tolist())]

    def last(self, window: int) -> "Sequences":
        """Every history cut to its most recent `window` items; ValueError where that is none."""
        check_count(window, "window")
        lengths = np.minimum(self.lengths, window)
        return Sequences(self.users, self.items[spans(self.offsets[1:] - lengths, lengths)], cumulate(lengths))

    def split_targets(self) -> tuple["Sequences", np.ndarray]:
        """Histories without their last item, and the last items (U,); ValueError for an empty history."""
        lengths = self.lengths - 1
        if len(lengths) and lengths.min() < 0:
            raise ValueError(f"history {lengths.argmin()} is empty: it has no last item")
        histories = self.items[spans(self.offsets[:-1], lengths)]
        return Sequences(self.users, histories, cumulate(lengths)), self.items[self.offsets[1:] - 1]


def cumulate(lengths: np.ndarray) -> np.ndarray:
    """(U,) lengths -> (U + 1,) int64 offsets."""
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate the ranges [start, start + length) into one int64 index array, without a loop."""
    offsets = cumulate(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


@dataclass(frozen=True)
class Catalog:
    """All N items: codes for the token embedding, continuous embeddings for the auxiliary one."""

    codes: np.ndarray  # (N, K) int16 in [0, 15360)
    embeddings: np.ndarray  # (rows, E) float, usually memory-mapped
    rows: np.ndarray | None = None  # (N,) int64 row of each item in `embeddings`; None: item i is row i
    source: str = "the embedding matrix"  # file name, for messages

    def __len__(self) -> int:
        return len(self.codes)

    def embed(self, items: np.ndarray) -> np.ndarray:
        """(n,) item ids -> (n, E) float32 embeddings, read from the matrix as they are needed.

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
        """(n,) item ids -> (n, K) int64; ValueError where an item has no four codes."""
        codes = self.codes[items]
        if codes.ndim != 2 or codes.shape[1] != CODES_PER_ITEM or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be (N, {CODES_PER_ITEM}) whole numbers, found {codes.shape} {codes.dtype}")
        if codes.size and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
            raise ValueError(f"codes must lie in [0, {CODEBOOK_SIZE}), found {codes.min()} to {codes.max()}")
        return torch.from_numpy(codes.astype(np.int64))


def check_finite(embeddings: np.ndarray, rows: np.ndarray | int, source: str) -> None:
    """InputError naming the first row of (n, E) float that holds NaN or infinity.

    `rows` are their places in the file, (n,) int64, or the place of the first of consecutive ones.
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

    No tuple, so that torch.compile passes it on without a look at its contents.
    """

    padded: Tensor  # (P,) int64 item slot at every place of the groups, one group after another
    places: Tensor  # (S,) int64 place of every item slot
    shapes: tuple[tuple[int, int], ...]  # (histories, items of the longest) of each group, in the order of the slots


class SeqBatch(NamedTuple):
    """B histories one after another, longest first, without padding: S item slots, T = 4S tokens."""

    codes: Tensor  # (S, K) int64
    embeddings: Tensor  # (S, E) float32
    positions: Tensor  # (S,) int64, the item's place for the position embedding
    last: Tensor  # (B,) int64, slot of each history's last item, in the order given
    groups: Groups
    targets: Tensor | None = None  # (S, K) int64, the codes of each slot's next item, in training; or IGNORED

    def without_targets(self) -> "SeqBatch":
        """The same histories with nothing to predict: for a process that runs along without a share of its own."""
        return self._replace(targets=torch.full_like(self.targets, IGNORED))

    def to(self, device: torch.device) -> "SeqBatch":
        """The same batch on another device."""
        return self._on(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "SeqBatch":
        """The same batch where a GPU can fetch it while it computes."""
        return self._on(Tensor.pin_memory)

    def _on(self, move: Callable[[Tensor], Tensor]) -> "SeqBatch":
        groups = Groups(move(self.groups.padded), move(self.groups.places), self.groups.shapes)
        return SeqBatch(
            *(move(tensor) for tensor in self[:4]), groups, None if self.targets is None else move(self.targets)
        )


def make_batch(sequences: Sequences, catalog: Catalog, left_padded: bool = False) -> SeqBatch:
    """Histories as the model reads them, to predict the item after each one's last.

    Args:
        sequences: the B histories of the batch, none empty.
        catalog: codes and embeddings of their items.
        left_padded: count positions as the published program does, which pads histories on the left to the longest
            of the batch (`released`), instead of from each one's first item (`corrected`).

    Raises:
        ValueError: no history or an empty one, or an item id that is none of the catalog or has no codes there.
    """
    check_histories(sequences, catalog)
    longest_first = np.argsort(-sequences.lengths, kind="stable")
    ordered = sequences.select(longest_first)
    lengths = ordered.lengths
    positions = spans(lengths[0] - lengths if left_padded else np.zeros_like(lengths), lengths)
    last = np.empty_like(lengths)
    last[longest_first] = ordered.offsets[1:] - 1
    return SeqBatch(
        catalog.codes_of(ordered.items),
        torch.from_numpy(catalog.embed(ordered.items)),
        torch.from_numpy(positions),
        torch.from_numpy(last),
        group_by_length(lengths),
    )


def training_batch(sequences: Sequences, catalog: Catalog) -> SeqBatch:
    """Histories with the next item's codes at every slot; a history's last item is only a target, and never read.

    Raises:
        ValueError: no history of two items, an empty one, or an item id that is none of the catalog.
    """
    check_histories(sequences, catalog)
    rows = np.argsort(-sequences.lengths, kind="stable")  # make_batch keeps this order
    ordered = sequences.select(rows[sequences.lengths[rows] > 1])  # one item alone has no next
    batch = make_batch(ordered.split_targets()[0], catalog)
    next_items = ordered.items[spans(ordered.offsets[:-1] + 1, ordered.lengths - 1)]
    return batch._replace(targets=catalog.codes_of(next_items))


def check_histories(sequences: Sequences, catalog: Catalog) -> None:
    """ValueError unless there are histories, each with an item, and all items have codes: others' would be read."""
    for name, kinds in (("items", "iu"), ("offsets", "i")):
        array = getattr(sequences, name)
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} must be a one-dimensional array of whole numbers, found {found}")
    if len(sequences) > 0:
        numbers_below(sequences.offsets[[0, -1]], len(sequences.items) + 1, "offsets")
    lengths = sequences.lengths
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(f"history {lengths.argmin()} of the batch is empty" if len(lengths) else "there is no history")
    low, high = sequences.items.min(), sequences.items.max()
    if low < 0 or high >= len(catalog):
        raise ValueError(
            f"item id {low if low < 0 else high} is none of the catalog, which has 0 to {len(catalog) - 1}"
        )


def token_positions(items: Tensor) -> Tensor:
    """Places of items (..., S) int64 -> places of their tokens (..., T) int64."""
    return (items[..., None] * CODES_PER_ITEM + torch.arange(CODES_PER_ITEM, device=items.device)).flatten(-2)


def group_by_length(lengths: np.ndarray) -> Groups:
    """Groups of (B,) int64 lengths, longest first: a history joins the one before unless that pads it by too much.

    Raises:
        ValueError: no lengths, a length below 1, or an order in which others would lose items.
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
        places = np.minimum(np.arange(longest), lengths[start:end, None] - 1)  # padding repeats the last item
        padded.append((offsets[start:end, None] + places).ravel())
        start = end
    first_places = cumulate(np.repeat([longest for _, longest in shapes], [histories for histories, _ in shapes]))
    return Groups(
        torch.from_numpy(np.concatenate(padded)),
        torch.from_numpy(spans(first_places[:-1], lengths)),
        tuple(shapes),
    )
