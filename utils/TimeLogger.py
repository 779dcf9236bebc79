"""How training goes, on one line of the terminal and as JSON lines: loss, throughput, padding, waiting, time left."""

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.data import SeqBatch
from utils.errors import DiskError
from utils.files import nan_to_none

LONGEST = 1 << 16  # bytes of a record
RECORD = b'{"step": '  # how each record begins


class TimeLogger:
    """Counts what training consumes and reports it on a tqdm bar and, as JSON lines, in a file."""

    def __init__(
        self,
        total: int,
        start: int = 0,
        path: Path | None = None,
        every: int = 10,
        flops: float = 0.0,
        track: Callable[[dict[str, float], int], None] | None = None,
    ):
        """Open the log, at its end, and the progress bar.

        Args:
            total: steps of the whole run.
            start: steps that an earlier part of it has taken.
            path: file of JSON lines; None in all processes but the first: they show nothing either.
            every: steps between two reports.
            flops: floating-point operations of training on one token.
            track: called with every record and its step.
        """
        self.file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")
            remove_partial_line(path)
        self.bar = tqdm(
            total=total, initial=start, unit="step", desc="pre-train", mininterval=1.0, disable=path is None
        )
        self.every, self.flops, self.track = every, flops, track
        self._start_interval()

    def _start_interval(self) -> None:
        self.since = time.perf_counter()
        self.waiting = 0.0
        self.steps, self.histories, self.tokens, self.items, self.padded_items = 0, 0, 0, 0, 0

    def waited(self, seconds: float) -> None:
        """Count time in which the device had no batch to work on."""
        self.waiting += seconds

    def update(self, histories: int, tokens: int, batches: list[SeqBatch]) -> None:
        """Count one step: histories and target tokens of all processes, and this one's batches, for their padding."""
        self.steps += 1
        self.per_item = batches[0].codes.shape[1]  # K
        self.histories += histories
        self.tokens += tokens
        self.items += sum(len(batch.codes) for batch in batches)
        self.padded_items += sum(len(batch.groups.padded) for batch in batches)
        self.bar.update()

    def due(self, step: int) -> bool:
        """Whether a report is expected after this step."""
        return step % self.every == 0

    def report(self, step: int, epoch: float, loss: float, lr: float) -> None:
        """Log the mean `loss` in nats of the target tokens since the last report, how many these are, and speed.

        The learning rate and the epochs that are done stand beside them.
        """
        seconds = time.perf_counter() - self.since
        record = {
            "step": step,
            "epoch": round(epoch, 5),
            "loss": round(loss, 5),
            "tokens": int(self.tokens),
            "lr": float(f"{lr:.5g}"),
            "step_s": round(seconds / self.steps, 4),
            "histories_per_s": round(self.histories / seconds, 2),
            "items_per_s": round(self.tokens / self.per_item / seconds, 1),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "tflop_per_s": float(f"{self.tokens * self.flops / seconds / 1e12:.3g}"),
            "padding_share": round(1 - self.items / self.padded_items, 4),
            "waiting_share": round(self.waiting / seconds, 4),
            "peak_memory_gib": round(peak_memory(), 3),
        }
        self.bar.set_postfix_str(
            "loss {loss:.4f}, lr {lr:.2g}, {tokens_per_s:.0f} tokens/s, {tflop_per_s:.3g} TFLOP/s, "
            "padding {padding_share:.1%}, waiting {waiting_share:.1%}".format(**record),
            refresh=False,
        )
        self.log(record, step)
        self._start_interval()

    def log(self, record: dict[str, Any], step: int) -> None:
        """Write one JSON line, and pass its numbers on to the tracker; raise DiskError if the disk is full."""
        if self.file is not None:
            try:
                self.file.write(json.dumps(nan_to_none({"step": step, **record, "time": round(time.time(), 1)})) + "\n")
                self.file.flush()
            except OSError as error:
                raise DiskError(
                    f"{self.file.name} could not be written ({error.strerror}). Free some space, then --resume."
                ) from error
        if self.track is not None:
            self.track({name: value for name, value in record.items() if isinstance(value, (int, float))}, step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent in the block out of the speed: it does not count as training."""
        started = time.perf_counter()
        yield
        self.since += time.perf_counter() - started

    def __enter__(self) -> "TimeLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file is not None:
            with contextlib.suppress(OSError):  # on a full disk, `log` has raised an error before
                self.file.close()


def remove_partial_line(path: Path) -> None:
    """Cut an unfinished record off the end of a log, where a kill or a full disk has left one."""
    if path.is_file():
        with path.open("rb+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST))
            last = file.read().rpartition(b"\n")[2]
            if last.startswith(RECORD) or last and RECORD.startswith(last):
                file.seek(-len(last), os.SEEK_END)
                file.truncate()


def peak_memory() -> float:
    """Highest use of memory so far in GiB: by tensors on the GPU, or resident in RAM where training is on the CPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
