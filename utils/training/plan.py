"""What is trained on, step by step: decided by settings, data and processes alone, so that it can begin anywhere."""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from utils.data import IGNORED, SeqBatch, training_batch
from utils.datasets import Interactions
from utils.fsq import CODES_PER_ITEM
from utils.training.batches import epoch_batches, equal_work_batches

TENTHS = 10


class Place(NamedTuple):
    """How far training is."""

    step: int = 0  # steps taken
    epoch: int = 0
    row: int = 0  # histories read of this epoch's order


class Work(NamedTuple):
    """One step to take."""

    rows: np.ndarray  # (histories,) of all processes, places in the data
    batches: list[SeqBatch]  # this process's share, one for each gradient accumulation
    place: Place  # where training stands after it

    @property
    def targets(self) -> int:
        """Target tokens of this process's share."""
        return sum(int((batch.targets != IGNORED).sum()) for batch in self.batches)


class Plan:
    """The steps of a run and what is due at them."""

    def __init__(
        self,
        data: Interactions,
        args: argparse.Namespace,
        window: int,
        process: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
    ):
        """A plan of one process.

        Args:
            data: histories and catalog.
            args: the flags of pre_train.py.
            window: items that the model reads of a history.
            process: number of this process.
            processes: how many there are.
            device: where batches will go.
        """
        self.data, self.args, self.window = data, args, window
        self.process, self.processes = process, processes
        self.pinned = device is not None and device.type == "cuda"
        self.histories = len(data.sequences)

    def work(self, place: Place) -> Iterator[Work]:
        """The steps from `place` on, to --max_steps or the end of the last epoch."""
        step = place.step
        for epoch in range(place.epoch, self.args.epoch):
            row = place.row if epoch == place.epoch else 0
            for rows in self.rows(epoch, row):
                if self.args.max_steps and step >= self.args.max_steps:
                    return
                step, row = step + 1, row + len(rows)
                yield Work(rows, list(self.share(rows)), Place(step, epoch, row))

    def rows(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Histories of each step of an epoch, all processes together, from the place `start` of its order on."""
        args, passes = self.args, self.processes * self.args.gradient_accumulation_steps
        if args.tokens_per_batch is None:
            return epoch_batches(self.histories, args.batch_size * passes, args.seed, epoch, start)
        tokens = (np.minimum(self.data.sequences.lengths, self.window) - 1) * CODES_PER_ITEM
        return equal_work_batches(tokens, args.tokens_per_batch * passes, args.seed, epoch, start)

    def share(self, rows: np.ndarray) -> Iterator[SeqBatch]:
        """This process's batches of a step, the last `window` items of each history; equally many in every process."""
        mine = rows[self.process :: self.processes]
        passes = min(self.args.gradient_accumulation_steps, max(1, len(rows) // self.processes))
        for part in np.array_split(mine if len(mine) else rows[:1], passes):
            batch = training_batch(self.data.sequences.select(part).last(self.window), self.data.catalog)
            if not len(mine):  # fewer histories than processes: this one runs along
                batch = batch.without_targets()
            yield batch.pin_memory() if self.pinned else batch

    def steps(self, place: Place) -> int:
        """Steps of the whole run: those taken at `place` and those to come. Every whole epoch has equally many."""
        to_come = 0
        if place.epoch < self.args.epoch:
            to_come = sum(1 for _ in self.rows(place.epoch, place.row))
            to_come += sum(1 for _ in self.rows(0)) * (self.args.epoch - place.epoch - 1)
        steps = place.step + to_come
        return max(place.step, min(self.args.max_steps or steps, steps))

    def learning_rate(self, work: Work) -> float:
        """--lr times warm-up and schedule, by the share of the training that is done in the middle of a step.

        Counted in histories, or in steps where --max_steps comes first, so that it goes on smoothly when a run is
        resumed with another number of processes.
        """
        args, place = self.args, work.place
        done = (place.epoch * self.histories + place.row - len(work.rows) / 2) / (args.epoch * self.histories)
        if args.max_steps:
            done = max(done, (place.step - 0.5) / args.max_steps)
        if done < args.warmup:
            return args.lr * done / args.warmup
        if args.schedule == "constant":
            return args.lr
        return args.lr * (1 + math.cos(math.pi * (done - args.warmup) / (1 - args.warmup))) / 2

    def checkpoint_names(self, before: Place, place: Place, stopping: bool = False) -> list[str]:
        """Names under which the weights are saved after the step from `before` to `place`; none after most steps."""
        names, stem = [], f"layer_{self.args.tf_layer}_epoch_{place.epoch}"
        begun = before.row if before.epoch == place.epoch else 0
        for tenth in range(1, TENTHS + 1):
            if place.epoch == 0 and begun < -(-tenth * self.histories // TENTHS) <= place.row:
                names.append(f"{stem}_model_{tenth:02d}.pt")
        if place.step % self.args.save_every == 0 or stopping or place.step == self.args.max_steps:
            names.append(f"{stem}_step_{place.step}.pt")
        if place.row == self.histories:
            names.append(f"{stem}.pt")
        return names

    def evaluation_due(self, place: Place, steps: int) -> bool:
        """Whether the held-out histories are read after this step of `steps`."""
        every = self.args.eval_every
        return bool(every) and (place.step % every == 0 or place.step == steps)
