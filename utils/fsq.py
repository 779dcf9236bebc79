"""Finite scalar quantization (FSQ): the codebook without a learned table.

Follows Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (2023), in the published system's variant:
the shift is ``tan(offset / half)``, not ``atanh``, and the half-range shrinks by ``1 - 1e-3``. Under any other choice
the published weights give other codes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import InputError, reason

VERSION = 1  # of the rule by which numbers become codes; whoever changes it raises this, and fingerprints differ
LARGEST = 2**15 - 1  # codebook, in codes, since codes are kept as int16 and the padding token is one more
MOST_PER_ITEM = 64  # codes of an item


@dataclass(frozen=True)
class Codebook:
    """Which codes there are: the levels of the numbers that a code stands for, and how many codes an item has.

    All sizes follow from these two. A file says which it has; one that does not, such as the release's, has the
    defaults, which therefore stay as they are.
    """

    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    per_item: int = 4  # K

    def __post_init__(self) -> None:
        """ValueError for levels or numbers of codes that no tokenizer has."""
        if not isinstance(self.levels, tuple) or not all(type(level) is int and level > 1 for level in self.levels):
            raise ValueError(f"levels {self.levels!r} are not whole numbers of 2 or more")
        if not self.levels or self.size > LARGEST:
            raise ValueError(f"levels {self.levels} make {self.size} codes, and there may be 2 to {LARGEST}")
        if type(self.per_item) is not int or not 0 < self.per_item <= MOST_PER_ITEM:
            raise ValueError(f"an item cannot have {self.per_item!r} codes, but 1 to {MOST_PER_ITEM}")

    @property
    def size(self) -> int:
        """How many codes there are; they are the numbers from 0 on."""
        return math.prod(self.levels)

    @property
    def padding(self) -> int:
        """The token where there is no item: one past the codes."""
        return self.size

    @property
    def vocabulary(self) -> int:
        """V: the codes and the padding token."""
        return self.size + 1

    @property
    def basis(self) -> tuple[int, ...]:
        """What each level counts for in a code: (1, 8, 64, 512, 3072) by default."""
        return tuple(math.prod(self.levels[:place]) for place in range(len(self.levels)))

    @property
    def name(self) -> str:
        """As it stands in the names of files: len4_fsq88865 by default, len4_fsq-16-5 of levels above 9."""
        before = "-" if max(self.levels) > 9 else ""
        return f"len{self.per_item}_fsq{''.join(f'{before}{level}' for level in self.levels)}"

    def noted(self) -> dict[str, Any]:
        """What JSON files say of it."""
        return {"levels": list(self.levels), "codes_per_item": self.per_item}

    @classmethod
    def read(cls, noted: Mapping[str, Any], source: str | Path) -> "Codebook":
        """The codebook that a JSON file says, or the default where it says nothing; InputError for an odd one."""
        levels, per_item = noted.get("levels"), noted.get("codes_per_item")
        try:
            return cls(cls.levels if levels is None else tuple(levels), cls.per_item if per_item is None else per_item)
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: no such codes exist ({reason(error)}). Write or fetch it again.") from error

    def __str__(self) -> str:
        return f"{self.per_item} codes of levels {self.levels}"


PUBLISHED = Codebook()


class FSQ(nn.Module):
    """Quantizer of vectors of width `dim`: projects to F numbers, rounds each to one of its levels, projects back.

    F is 5 by default, as many as the codebook has numbers of levels.
    """

    def __init__(self, dim: int, codebook: Codebook = PUBLISHED):
        super().__init__()
        self.project_in = nn.Linear(dim, len(codebook.levels))
        self.project_out = nn.Linear(len(codebook.levels), dim)
        levels = torch.tensor(codebook.levels)
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        # Not part of a checkpoint, since all follow from the levels.
        self.register_buffer("half_range", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.tan(offset / half), persistent=False)
        self.register_buffer("half_width", levels // 2, persistent=False)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", torch.tensor(codebook.basis), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash (..., F) real numbers into the range of each level, before rounding."""
        return torch.tanh(z + self.shift) * self.half_range - self.offset

    def quantize(self, z: Tensor) -> Tensor:
        """Round (..., F) real numbers to normalised codes in [-1, 1]; the gradient passes straight through."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.half_width

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """(..., F) normalised codes -> (...) int64 indices, which are what everything else calls codes.

        The digits are rounded before the integer cast, which would turn a product such as 0.3333 * 3 into 0.
        """
        digits = (codes.float() * self.half_width).round().long() + self.half_width
        return (digits * self.basis).sum(-1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """(...) int64 indices -> (..., F) float32 normalised codes; the inverse of `codes_to_indices`."""
        digits = (indices[..., None] // self.basis) % self.levels
        return (digits - self.half_width) / self.half_width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize (..., dim) float: (..., dim) float32 and the indices of the codes (...) int64.

        Always in float32, whatever autocast says: in bfloat16 nine of ten indices are wrong, some the padding token.
        """
        with torch.autocast(x.device.type, enabled=False):
            codes = self.quantize(self.project_in(x.float()))
            return self.project_out(codes), self.codes_to_indices(codes)


def code_keys(codes: np.ndarray) -> np.ndarray:
    """One key (N,) of bytes for the codes (N, K) of each item: equal where all are, and in the order of the codes."""
    return np.ascontiguousarray(codes, dtype=">i2").view(f"S{2 * codes.shape[1]}").ravel()


def sharing(codes: np.ndarray) -> int:
    """How many items of codes (n, K) share all of them with another.

    >>> sharing(np.array([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]]))
    2
    """
    _, counts = np.unique(code_keys(codes), return_counts=True)
    return int(counts[counts > 1].sum())
