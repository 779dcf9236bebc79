"""Which users are trained on, which of them each step of an epoch reads, and batches made ahead of time.

Seeds alone decide both, whatever the number of processes.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from utils.errors import InputError

SHARE_STREAM = 1 << 40  # keeps the numbers that draw users apart from those of any epoch's order


def drawn_users(count: int, share: float, seed: int) -> np.ndarray:
    """Rows (n,) int32, ascending, of the n users that --data_share draws among `count`, by --data_share_seed alone.

    The users of a smaller share are among those of a larger one. Each user has a number, drawn by a generator whose
    stream NumPy promises never to change, and the lowest numbers are chosen.

    InputError if the share has no user.
    """
    chosen = round(share * count)
    if not chosen:
        raise InputError(f"--data_share {share:g} of {count} users is less than one of them. Give more.")
    if chosen == count:
        return np.arange(count, dtype=np.int32)
    numbers = np.random.PCG64([seed, SHARE_STREAM]).random_raw(count)
    return np.sort(np.argsort(numbers, kind="stable")[:chosen].astype(np.int32))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int32 random permutation, the same for the same seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(np.arange(count, dtype=np.int32))


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """Cut the order of an epoch into batches, (batch_size,) int32 rows each, from position `start` of the order on."""
    order = epoch_order(count, seed, epoch)
    for first in range(start, count, batch_size):
        yield order[first : first + batch_size]


def equal_work_cuts(work: np.ndarray, per_batch: int) -> np.ndarray:
    """Where to cut (U,) int64 work, in its order, so that each batch has about `per_batch`: (batches - 1,) int64.

    The number of batches depends on the sum alone, so that every epoch has equally many. No batch is empty as long as
    no history is more work than `per_batch`.
    """
    done = np.cumsum(work)
    batches = max(1, int(done[-1]) // per_batch)
    return np.searchsorted(done, done[-1] * np.arange(1, batches) / batches, side="right")


def equal_work_batches(work: np.ndarray, per_batch: int, seed: int, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """The same order as in `epoch_batches`, cut where (U,) int64 `work` adds up to about `per_batch`."""
    order = epoch_order(len(work), seed, epoch)
    cuts = equal_work_cuts(work[order], per_batch)
    if start < len(work):
        yield from np.split(order[start:], cuts[cuts > start] - start)


def prefetched(batches: Iterator[Any], waited: Callable[[float], None]) -> Iterator[Any]:
    """Yield the same batches, each made by a thread while the one before is used; `waited` gets the seconds lost."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, batches, None)
        while True:
            started = time.perf_counter()
            batch = coming.result()
            waited(time.perf_counter() - started)
            if batch is None:
                return
            coming = worker.submit(next, batches, None)
            yield batch
