"""Whitening: the embeddings of one catalog, made equally wide in every direction.

Sentence embeddings of one catalog resemble each other: what all its texts have in common takes up most of their length.
Without it, neighbours are nearer in meaning, and catalogs of different domains use all codes of a tokenizer alike.
"""

from typing import NamedTuple

import numpy as np

from utils.data import check_finite

POWER = 0.5  # a direction of variance w is divided by w^0.5; 0 would leave it as it is
WHITENED = ", whitened"  # ends the name of an encoder whose embeddings were whitened
LEAST = 1e-4  # of the mean variance is added to each, so that directions of mere rounding stay small
PER_DIRECTION = 6  # items, at least, that the variances of texts are measured with (docs/log.md)
CHUNK = 1 << 14  # rows that are in memory at once


class Whitening(NamedTuple):
    """The affine map (ZCA) that whitens the embeddings of one catalog."""

    mean: np.ndarray  # (E,) float64
    transform: np.ndarray  # (E, E) float64, symmetric

    @classmethod
    def of(cls, embeddings: np.ndarray, power: float = POWER, source: str = "the embedding matrix") -> "Whitening":
        """Measure mean and variances of embeddings (N, E), scaled to unit length, in one pass over the file.

        Zero rows, items without text, do not count. InputError if an embedding is not finite; names its `source`.
        """
        width = embeddings.shape[1]
        count, total, products = 0, np.zeros(width), np.zeros((width, width))
        for start in range(0, len(embeddings), CHUNK):
            rows = unit_rows(embeddings[start : start + CHUNK], start, source)
            rows = rows[rows.any(axis=1)].astype(np.float64)
            count, total, products = count + len(rows), total + rows.sum(axis=0), products + rows.T @ rows
        mean = total / max(1, count)
        variances, directions = np.linalg.eigh(products / max(1, count) - np.outer(mean, mean))
        variances = np.maximum(variances, 0)
        scale = np.maximum(variances + LEAST * variances.mean(), 1e-12) ** -power
        return cls(mean, (directions * scale) @ directions.T)

    @classmethod
    def of_texts(cls, embeddings: np.ndarray, source: str = "the embedding matrix") -> "Whitening":
        """As `of`, to compare texts; of few items the map that changes nothing, as their variances are mere chance.

        Whitened, a few hundred texts are all equally far from each other, and nearer to any new one.
        """
        width = embeddings.shape[1]
        if not are_whitened(*embeddings.shape):
            return cls(np.zeros(width), np.eye(width))
        return cls.of(embeddings, source=source)

    def __call__(self, embeddings: np.ndarray, first: int = 0, source: str = "the embedding matrix") -> np.ndarray:
        """Whiten some embeddings (n, E) of the catalog: (n, E) float32 of unit length; zero rows stay zero.

        The arithmetic is in float64, so that equal rows stay equal whatever chunk they are in. InputError if an
        embedding is not finite; `first` is its row in `source`.
        """
        rows = unit_rows(embeddings, first, source)
        white = (rows.astype(np.float64) - self.mean) @ self.transform
        return unit_rows(np.where(rows.any(axis=1)[:, None], white, 0))


def are_whitened(items: int, width: int) -> bool:
    """Whether texts of a catalog of so many items, with embeddings so wide, are compared whitened."""
    return items >= PER_DIRECTION * width


def whiten(embeddings: np.ndarray, power: float = POWER) -> np.ndarray:
    """The embeddings (N, E) of a catalog, whitened: (N, E) float32 of unit length; zero rows stay zero."""
    return Whitening.of(embeddings, power)(embeddings)


def text_rows(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (N, E) as texts are compared by, (N, E) float32 of unit length: whitened, unless there are too few."""
    return Whitening.of_texts(embeddings)(embeddings)


class WhitenedMatrix:
    """A matrix of embeddings (N, E), usually memory-mapped, whose rows are whitened when they are read."""

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, embeddings: np.ndarray, source: str = "the embedding matrix"):
        self.embeddings, self.source = embeddings, source
        self.whitening = Whitening.of(embeddings, source=source)
        self.shape, self._mmap = embeddings.shape, getattr(embeddings, "_mmap", None)

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read some rows: (n, E) float32."""
        return self.whitening(self.embeddings[rows], source=self.source)


def unit_rows(embeddings: np.ndarray, first: int = 0, source: str = "the embedding matrix") -> np.ndarray:
    """Embeddings (n, E) scaled to length one, float32; zero rows stay zero.

    InputError if one is not finite; `first` is its row in `source`.
    """
    with np.errstate(over="ignore"):
        rows = np.asarray(embeddings, dtype=np.float32)
    check_finite(rows, first, source)
    largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-12)  # so that no square overflows
    rows = rows / largest
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) + 0.0  # -0.0 becomes 0.0
