"""Deterministic stand-in weights and inputs, so that two implementations can be compared without shipping weights.

fill_(module, seed) overwrites every floating-point entry of a state dict, tensor by tensor, from a generator
seeded by the tensor's *name*: names, not registration order, decide the values.
"""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...], seed: int, scale: float) -> np.ndarray:
    """float32 normal values of the given shape; the same for the same (name, shape, seed, scale)."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return (rng.standard_normal(size=shape, dtype=np.float32) * np.float32(scale)).astype(np.float32)


def scale_for(name: str) -> tuple[float, float]:
    """(standard deviation, mean) that keeps activations in a healthy range."""
    if name.endswith("project_in.weight"):
        return 0.9, 0.0
    if "norm" in name or ".ln_" in name:
        return 0.05, 1.0 if name.endswith("weight") else 0.0
    if name.endswith("bias"):
        return 0.02, 0.0
    if name.endswith("pred_head.weight"):
        return 0.2, 0.0
    return 0.05, 0.0


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """A full set of float32 arrays for {name: shape}."""
    out = {}
    for name, shape in shapes.items():
        std, mean = scale_for(name)
        out[name] = tensor(name, tuple(shape), seed, std) + np.float32(mean)
    return out


def embeddings(n_items: int, dim: int, seed: int, clusters: int = 50, duplicates: int = 0) -> np.ndarray:
    """(n_items, dim) float32 unit rows in clusters; the last `duplicates` rows repeat the first ones (same codes)."""
    rng = np.random.default_rng([seed, 7])
    centres = rng.standard_normal((clusters, dim))
    rows = centres[rng.integers(0, clusters, n_items)] + 0.6 * rng.standard_normal((n_items, dim))
    if duplicates:
        rows[-duplicates:] = rows[:duplicates]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sequences(n_users: int, n_items: int, seed: int, longest: int = 40) -> list[list[int]]:
    """n_users item-id lists, lengths 2..longest, skewed short."""
    rng = np.random.default_rng([seed, 11])
    lengths = np.minimum(2 + rng.geometric(0.12, n_users), longest)
    return [rng.integers(0, n_items, int(n)).tolist() for n in lengths]
