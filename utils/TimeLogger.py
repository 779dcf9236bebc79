"""One progress line and one JSON line per report: step, loss, throughput, attention's padding, waiting, time left."""

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.data import SeqBatch
from utils.fsq import CODES_PER_ITEM


class TimeLogger:
    """Counts what training consumes and reports it on a tqdm bar and, as JSON lines, in a file.

    The loss is read from the device only when a report is due, since that waits for the device.
    """

    def __init__(self, total: int, path: Path | None = None, every: int = 10, quiet: bool = False):
        self.bar = tqdm(total=total, unit="step", desc="pre-train", mininterval=1.0, disable=quiet)
        self.file = None
        if path is not None and not quiet:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")
        self.step, self.total, self.every = 0, total, every
        self._start_interval()

    def _start_interval(self) -> None:
        self.since = time.perf_counter()
        self.waiting = 0.0
        self.losses, self.histories, self.items, self.places = [], 0, 0, 0

    def waited(self, seconds: float) -> None:
        """Add time in which the device had no batch to work on."""
        self.waiting += seconds

    def update(self, loss: Any, batch: SeqBatch) -> None:
        """Count one step; `loss` is a () tensor in nats, `batch` the histories of this process."""
        self.step += 1
        self.losses.append(loss)
        self.histories += len(batch.last)
        self.items += len(batch.codes)
        self.places += len(batch.groups.padded)
        self.bar.update()
        if self.step % self.every == 0 or self.step == self.total:
            self._report()

    def _report(self) -> None:
        loss = sum(value.item() for value in self.losses) / len(self.losses)  # waits for the device
        seconds = time.perf_counter() - self.since
        record = {
            "step": self.step,
            "loss": round(loss, 5),
            "histories_per_s": round(self.histories / seconds, 2),
            "items_per_s": round(self.items / seconds, 1),
            "tokens_per_s": round(self.items * CODES_PER_ITEM / seconds, 1),
            "padding_share": round(1 - self.items / self.places, 4),
            "waiting_share": round(self.waiting / seconds, 4),
        }
        self.bar.set_postfix_str(
            "loss {loss:.4f}, {items_per_s:.0f} items/s, {tokens_per_s:.0f} tokens/s, padding {padding_share:.1%}, "
            "waiting {waiting_share:.1%}".format(**record),
            refresh=False,
        )
        if self.file is not None:
            self.file.write(json.dumps({**record, "time": round(time.time(), 1)}) + "\n")
            self.file.flush()
        self._start_interval()

    def __enter__(self) -> "TimeLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.file is not None:
            self.file.close()
