"""Small shared pieces: the device, the seed, numbers that name things."""

import argparse
from typing import Any

import numpy as np
import torch

from utils.errors import InputError


def add_device_flags(flags: argparse.ArgumentParser) -> None:
    """--device and the published --gpu."""
    flags.add_argument("--device", help="cpu, cuda, cuda:1, …; by default the GPU of --gpu where there is one")
    flags.add_argument("--gpu", type=int, default=0, help="number of the GPU")


def pick_device(args: argparse.Namespace) -> torch.device:
    """The device to run on; says so when it is the CPU for want of a GPU.

    Raises:
        InputError: the device that was asked for is not there.
    """
    if args.device is None:
        if not torch.cuda.is_available():
            print("no GPU found: running on the CPU")  # noqa: T201
            return torch.device("cpu")
        args.device = f"cuda:{args.gpu}"
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {args.device} cannot be used ({reason}). Name another, for example cpu.") from error
    return device


def numbers_below(values: Any, count: int, what: str) -> np.ndarray:
    """Whole numbers (n,) as int64; ValueError unless they are 0 to count - 1: others would stand for something else."""
    numbers = np.asarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"{what} must be (n,) whole numbers, found {numbers.shape} {numbers.dtype}")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < count):
        raise ValueError(f"{what} must lie in [0, {count}), found {numbers.min()} to {numbers.max()}")
    return numbers.astype(np.int64, copy=False)


def check_count(value: Any, what: str) -> None:
    """ValueError unless a value is a whole number of 1 or more."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{what} must be 1 or more, a whole number, found {value!r}")


def set_seed(seed: int) -> None:
    """Seed torch and numpy's global generators (dropout, initial weights)."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global generator
