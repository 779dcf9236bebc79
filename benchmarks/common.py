"""What the benchmarks share: flags, histories, the clock, the rates that the machine reaches, the record of a run."""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.published import PublishedModel
from model import RecGPT, RecGPTConfig
from utils.cli import parser, positive_int, seed
from utils.data import WINDOW, Catalog, Sequences, cumulate
from utils.datasets import load_sequences
from utils.errors import InputError
from utils.files import check_writable
from utils.fsq import PUBLISHED
from utils.rows import cpu_name
from utils.util import add_device_flags, append_results, pick_device, set_seed

EMBEDDING_WIDTH = 768
TOP = 20  # items in a list


def benchmark_parser(docstring: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks of a catalog have."""
    flags = parser(docstring)
    flags.add_argument("--items", type=positive_int, default=15066, help="items of the catalog")
    flags.add_argument("--repeats", type=positive_int, default=5, help="timed repeats, after one warm-up")
    flags.add_argument("--seed", type=seed, default=0, help="weights, catalog, histories")
    flags.add_argument("--results", metavar="FILE", help="append the result as one JSON line")
    return flags


def add_published_flags(flags: argparse.ArgumentParser) -> None:
    """The further flags of the benchmarks that time the published formulation, too."""
    flags.add_argument("--published_repeats", type=positive_int, default=3, help="the same, of the published one")
    flags.add_argument("--no_published", action="store_true", help="do not time the published formulation")
    add_device_flags(flags)


def add_model_flags(flags: argparse.ArgumentParser) -> None:
    """The further flags of the benchmarks that run the model."""
    flags.add_argument("--sequences", metavar="FILE", help="test.pkl whose histories are used, ids modulo --items")
    flags.add_argument("--length", type=positive_int, help="histories of exactly so many items, the target not counted")
    flags.add_argument("--tf_layer", type=positive_int, default=3, help="transformer layers")
    flags.add_argument("--width", type=positive_int, default=768, help="hidden width")


def check_results(args: argparse.Namespace) -> None:
    """InputError, before anything is built, where --results cannot be written."""
    if args.results:
        check_writable(args.results)


def check_model_flags(args: argparse.Namespace) -> None:
    """As `check_results`; InputError also for flags of `add_model_flags` with which nothing can be measured."""
    check_results(args)
    if args.items < TOP:
        raise InputError(f"--items {args.items}: lists of {TOP} are searched; name at least as many.")
    if args.length and args.sequences:
        raise InputError("--length draws histories and --sequences reads them: leave out one of both.")
    if args.length and args.length >= WINDOW:
        raise InputError(f"--length {args.length} is more than the model reads; at most {WINDOW - 1}.")


def draw_histories(args: argparse.Namespace, count: int, rng: np.random.Generator) -> Sequences:
    """Draw `count` histories from --sequences, or with lengths like those of the released Steam test set.

    Its mean is 13.7 items with the target, its median 9. With --length every history has that many and a target.
    """
    if args.length:
        lengths = np.full(count, args.length + 1)
        return Sequences(np.arange(count), rng.integers(0, args.items, lengths.sum()), cumulate(lengths))
    if args.sequences:
        sequences = load_sequences(Path(args.sequences), "Name a test.pkl.")
        if count > len(sequences):
            print(f"{args.sequences} has {len(sequences)} histories, {count} are drawn: some more than once")
        drawn = sequences.select(rng.choice(len(sequences), count, replace=count > len(sequences)))
        return Sequences(drawn.users, drawn.items % args.items, drawn.offsets)
    lengths = np.minimum(5 + rng.lognormal(1.35, 1.15, count), 1000).astype(np.int64)
    return Sequences(np.arange(count), rng.integers(0, args.items, lengths.sum()), cumulate(lengths))


def draw_codes(items: int, rng: np.random.Generator) -> np.ndarray:
    """Random codes (items, K) int16."""
    return rng.integers(0, PUBLISHED.size, (items, PUBLISHED.per_item), dtype=np.int16)


def draw_catalog(items: int, rng: np.random.Generator) -> Catalog:
    """Random codes and embeddings."""
    return Catalog(draw_codes(items, rng), rng.standard_normal((items, EMBEDDING_WIDTH), dtype=np.float32))


def build(args: argparse.Namespace) -> tuple[np.random.Generator, torch.device, Catalog, RecGPT, PublishedModel]:
    """Check the flags, and draw by --seed a catalog and a model, which the published formulation gets, too."""
    check_model_flags(args)
    set_seed(args.seed)
    rng, device = np.random.default_rng(args.seed), pick_device(args)
    model = RecGPT(RecGPTConfig(layers=args.tf_layer, width=args.width)).to(device)
    return rng, device, draw_catalog(args.items, rng), model, PublishedModel(model)


def status(process: int | str, field: str) -> int:
    """A field of Linux's /proc/PROCESS/status in KiB; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Time of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 20) -> float:
    """FLOP/s, the median of `repeats` plain matrix products: 2048x768x3072 on the CPU, 8192 cubed on a GPU."""
    m, k, n = (2048, 768, 3072) if device.type == "cpu" else (8192, 8192, 8192)
    left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    left @ right
    return 2 * m * k * n / statistics.median(seconds(lambda: left @ right, device) for _ in range(repeats))


def copy_rate(device: torch.device, size: int = 1 << 28, repeats: int = 10) -> float:
    """Bytes read and written per second by a plain copy of `size` bytes, the median of `repeats`."""
    source, target = torch.ones(size // 4, device=device), torch.ones(size // 4, device=device)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(repeats))


def model_flops(lengths: np.ndarray, layers: int, width: int, vocabulary: int) -> float:
    """FLOPs of a forward pass over histories of lengths (B,) int64 with the logits of every token.

    They are those of the matrix products and of the pairs that attention sees, nothing else.
    """
    tokens = PUBLISHED.per_item * lengths.sum()
    pairs = PUBLISHED.per_item**2 * (lengths * (lengths + 1) // 2).sum()  # a token sees its own and all earlier items
    per_token = layers * 12 * width**2 + width * EMBEDDING_WIDTH // PUBLISHED.per_item + width * vocabulary
    return float(2 * tokens * per_token + layers * 4 * width * pairs)


def time_in_turn(
    args: argparse.Namespace,
    device: torch.device,
    unit: str,
    runs: tuple[Callable[[int], Any], Callable[[int], Any]],
    counts: tuple[int, int],
    flops: np.ndarray | float,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Time our formulation and, unless --no_published, the published one in turn, each after a warm-up.

    Each of `runs` is called with the number of the repeat and serves one of `counts`, users or histories
    (`unit`). `flops` are what ours needs, (repeats,) or one number, `dtype` that of the matrix product beside it.
    """
    taken, published, matrix_rates = [], [], []
    for repeat in range(args.repeats + 1):
        taken.append(seconds(lambda: runs[0](repeat), device))  # noqa: B023 - called at once
        matrix_rates.append(matrix_rate(device, dtype))
        if not args.no_published and repeat <= args.published_repeats:
            published.append(seconds(lambda: runs[1](repeat), device))  # noqa: B023
    taken, matrix_rates = np.array(taken[1:]), np.array(matrix_rates[1:])
    shares = flops / taken / matrix_rates
    result = {
        f"{unit}_per_s": np.median(counts[0] / taken),
        "share_of_matrix_rate": np.median(shares),
        "matrix_gflops": np.median(matrix_rates) / 1e9,
        f"all_{unit}_per_s": (counts[0] / taken).round(2).tolist(),
        "all_shares": shares.round(3).tolist(),
    }
    if published:
        result[f"published_{unit}_per_s"] = np.median(counts[1] / np.array(published[1:]))
        result["ratio"] = result[f"{unit}_per_s"] / result[f"published_{unit}_per_s"]
    return result


def rounded(result: dict[str, Any]) -> dict[str, Any]:
    """A result with its floats cut to four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in result.items()}


def report(name: str, args: argparse.Namespace, device: torch.device, result: dict[str, Any]) -> None:
    """Print a result, and append it to --results with machine, versions and date."""
    left_out = ("results", "debug", "gpu", "sequences", "entropy")
    settings = {key: value for key, value in vars(args).items() if key not in left_out}
    result = {
        "benchmark": name,
        **rounded(result),
        "copy_gb_per_s": round(copy_rate(device) / 1e9, 1),
        **settings,
        **({"histories": Path(args.sequences).name if args.sequences else "drawn"} if "sequences" in args else {}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        **machine(),
    }
    for key, value in result.items():
        print(f"{key:>28}  {value}")
    append_results(args.results, [result])


def machine() -> dict[str, str]:
    """Processor, versions and date."""
    return {
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }
