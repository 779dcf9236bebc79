"""Finite scalar quantization (FSQ): the codebook without a learned table.

Follows Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple" (2023), in the published system's variant:
the shift is ``tan(offset / half)``, not ``atanh``, and the half-range shrinks by ``1 - 1e-3``. Under any other choice
the published weights give other codes.
"""

import torch
from torch import Tensor, nn

CODES_PER_ITEM = 4  # K
LEVELS = (8, 8, 8, 6, 5)
BASIS = (1, 8, 64, 512, 3072)
CODEBOOK_SIZE = 15360  # prod(LEVELS)
PADDING = CODEBOOK_SIZE  # the token where there is no item
VOCABULARY = CODEBOOK_SIZE + 1  # V


class FSQ(nn.Module):
    """Quantizer of vectors of width `dim`: projects to five numbers, rounds each to a level, projects back."""

    def __init__(self, dim: int):
        super().__init__()
        self.project_in = nn.Linear(dim, len(LEVELS))
        self.project_out = nn.Linear(len(LEVELS), dim)
        levels = torch.tensor(LEVELS)
        half = (levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        # Not part of a checkpoint, since all follow from LEVELS.
        self.register_buffer("half_range", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.tan(offset / half), persistent=False)
        self.register_buffer("half_width", levels // 2, persistent=False)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", torch.tensor(BASIS), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash (..., 5) real numbers into the range of each level, before rounding."""
        return torch.tanh(z + self.shift) * self.half_range - self.offset

    def quantize(self, z: Tensor) -> Tensor:
        """Round (..., 5) real numbers to normalised codes in [-1, 1]; the gradient passes straight through."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.half_width

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """(..., 5) normalised codes -> (...) int64 indices in [0, 15360).

        The digits are rounded before the integer cast, which would turn a product such as 0.3333 * 3 into 0.
        """
        digits = (codes.float() * self.half_width).round().long() + self.half_width
        return (digits * self.basis).sum(-1)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """(...) int64 indices -> (..., 5) float32 normalised codes; the inverse of `codes_to_indices`."""
        digits = (indices[..., None] // self.basis) % self.levels
        return (digits - self.half_width) / self.half_width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize (..., dim) float: (..., dim) float32 and the indices of the codes (...) int64.

        Always in float32, whatever autocast says: in bfloat16 nine of ten indices are wrong, some the padding token.
        """
        with torch.autocast(x.device.type, enabled=False):
            codes = self.quantize(self.project_in(x.float()))
            return self.project_out(codes), self.codes_to_indices(codes)
