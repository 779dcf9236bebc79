"""Sequences, catalogs and batches: from histories of item ids to the tensors the model reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.fsq import CODES_PER_ITEM, PADDING

WINDOW = 256  # items: 1,024 tokens, the rows of the position embedding


@dataclass(frozen=True)
class Sequences:
    """Many histories as one flat array: user i's items are `items[offsets[i]:offsets[i + 1]]`."""

    users: np.ndarray  # (U,) int64 or object: the keys of the file, in its order
    items: np.ndarray  # (sum of lengths,) int32 or int64 item ids in time order
    offsets: np.ndarray  # (U + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64 items per history."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "Sequences":
        """The histories of the given rows, in that order."""
        lengths = self.lengths[rows]
        return Sequences(self.users[rows], self.items[spans(self.offsets[rows], lengths)], cumulate(lengths))

    def last(self, window: int) -> "Sequences":
        """Every history cut to its most recent `window` items."""
        lengths = np.minimum(self.lengths, window)
        return Sequences(self.users, self.items[spans(self.offsets[1:] - lengths, lengths)], cumulate(lengths))

    def split_targets(self) -> tuple["Sequences", np.ndarray]:
        """Histories without their last item, and the last items (U,)."""
        lengths = self.lengths - 1
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
        """
        rows = items if self.rows is None else self.rows[items]
        embeddings = np.asarray(self.embeddings[rows], dtype=np.float32)
        check_finite(embeddings, rows, self.source)
        return embeddings


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


class SeqBatch(NamedTuple):
    """R rows of L item slots; a row holds one history, or several one after another (packed)."""

    codes: Tensor  # (R, L, K) int64, 15360 at padding
    embeddings: Tensor  # (R, L, E) float32, zero at padding
    history: Tensor  # (R, L) int64, which history a slot belongs to, -1 at padding
    positions: Tensor  # (R, L) int64, the item's place for the position embedding
    last: Tensor  # (B,) int64, flat slot (row * L + slot) of each history's last item

    def to(self, device: torch.device) -> "SeqBatch":
        """The same batch on another device."""
        return SeqBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def make_batch(
    sequences: Sequences, catalog: Catalog, rows: np.ndarray, starts: np.ndarray, padded_positions: bool = False
) -> SeqBatch:
    """Lay histories out in rows of a common length.

    Args:
        sequences: the B histories of the batch.
        rows: (B,) int64, the row that each history goes to.
        starts: (B,) int64, the slot at which it starts there.
        padded_positions: count positions from the start of the row instead of the history's first item.
    """
    lengths = sequences.lengths
    n_rows, n_slots = int(rows.max()) + 1, int((starts + lengths).max())
    slots = spans(rows * n_slots + starts, lengths)  # (sum of lengths,) flat slot of every item

    codes = np.full((n_rows * n_slots, CODES_PER_ITEM), PADDING, dtype=np.int64)
    embeddings = np.zeros((n_rows * n_slots, catalog.embeddings.shape[1]), dtype=np.float32)
    history = np.full(n_rows * n_slots, -1, dtype=np.int64)
    positions = np.zeros(n_rows * n_slots, dtype=np.int64)
    codes[slots] = catalog.codes[sequences.items]
    embeddings[slots] = catalog.embed(sequences.items)
    history[slots] = np.repeat(np.arange(len(lengths)), lengths)
    positions[slots] = slots % n_slots if padded_positions else spans(np.zeros_like(lengths), lengths)

    return SeqBatch(
        torch.from_numpy(codes).view(n_rows, n_slots, CODES_PER_ITEM),
        torch.from_numpy(embeddings).view(n_rows, n_slots, -1),
        torch.from_numpy(history).view(n_rows, n_slots),
        torch.from_numpy(positions).view(n_rows, n_slots),
        torch.from_numpy(rows * n_slots + starts + lengths - 1),
    )


def padded_batch(sequences: Sequences, catalog: Catalog) -> SeqBatch:
    """One history per row, starting at slot 0; positions do not depend on the batch (`corrected` protocol)."""
    rows = np.arange(len(sequences))
    return make_batch(sequences, catalog, rows, np.zeros_like(rows))


def left_padded_batch(sequences: Sequences, catalog: Catalog) -> SeqBatch:
    """One history per row, ending at the last slot, positions counted from the padded start (`released`)."""
    lengths = sequences.lengths
    rows = np.arange(len(sequences))
    return make_batch(sequences, catalog, rows, lengths.max() - lengths, padded_positions=True)


def packed_batch(sequences: Sequences, catalog: Catalog) -> SeqBatch:
    """Histories share rows as long as the longest of them, so that nearly no slot is padding.

    First-fit decreasing; the loop is over the histories of one training batch.
    """
    lengths = sequences.lengths
    room = int(lengths.max())
    rows, starts, filled = np.zeros_like(lengths), np.zeros_like(lengths), np.zeros_like(lengths)
    for index in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(filled + lengths[index] <= room))
        rows[index], starts[index] = row, filled[row]
        filled[row] += lengths[index]
    return make_batch(sequences, catalog, rows, starts)


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Rows of each step of one epoch: a permutation that depends only on (seed, epoch), cut into batches."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]
