"""Which histories each step of an epoch reads, in an order that the seed alone decides; batches made ahead of time."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from utils.data import SeqBatch


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) int32 permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(np.arange(count, dtype=np.int32))


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """Rows of each step of one epoch: its order cut into batches, from the place `start` of the order on."""
    order = epoch_order(count, seed, epoch)
    for place in range(start, count, batch_size):
        yield order[place : place + batch_size]


def equal_work_batches(work: np.ndarray, per_batch: int, seed: int, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
    """The same order cut where (U,) int64 `work` adds up to about `per_batch`: equally many batches in every epoch.

    No batch is empty as long as no history is more work than `per_batch`.
    """
    order = epoch_order(len(work), seed, epoch)
    done = np.cumsum(work[order])
    batches = max(1, int(done[-1]) // per_batch)
    ends = np.searchsorted(done, done[-1] * np.arange(1, batches) / batches, side="right")
    if start < len(work):
        yield from np.split(order[start:], ends[ends > start] - start)


def prefetched(batches: Iterator[SeqBatch], waited: Callable[[float], None]) -> Iterator[SeqBatch]:
    """The same batches, the next one made by a thread meanwhile; `waited` is told the seconds that each was late."""
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
