"""Which steps training takes, and what is due after each, as settings, data and number of processes decide.

A plan remembers nothing of what was done, so that it can begin at any step: this is what makes resuming exact.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from utils.data import IGNORED, SeqBatch, training_batch
from utils.datasets import Interactions
from utils.training.batches import drawn_users, epoch_batches, epoch_order, equal_work_batches, equal_work_cuts
from utils.training.settings import Settings

TENTHS = 10


class Progress(NamedTuple):
    """How far training is."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0
    row: int = 0  # histories read of this epoch's order


class Step(NamedTuple):
    """One optimizer step to take."""

    rows: np.ndarray  # (histories,) int32: which histories all processes read together
    batches: list[SeqBatch]  # what this process reads of them, one batch for each gradient accumulation
    progress: Progress  # where training is after the step

    @property
    def targets(self) -> int:
        """Target tokens that this process reads."""
        return sum(int((batch.targets != IGNORED).sum()) for batch in self.batches)


class Plan:
    """The steps of a run, and what is due after each."""

    def __init__(
        self,
        data: Interactions,
        settings: Settings,
        window: int,
        process: int = 0,
        processes: int = 1,
        device: torch.device | None = None,
    ):
        """Plan the steps of one process, number `process` of `processes`, whose batches will go to `device`.

        The model reads the last `window` items of a history.
        """
        self.data, self.settings, self.window = data, settings, window
        self.process, self.processes = process, processes
        self.passes = processes * settings.gradient_accumulation_steps  # forward passes of a step, by all processes
        self.pinned = device is not None and device.type == "cuda"
        self.users = drawn_users(len(data.sequences), settings.data_share, settings.data_share_seed)
        self.histories = len(self.users)  # that an epoch reads, and by which progress is counted

    def steps(self, progress: Progress) -> Iterator[Step]:
        """The steps to take from `progress` on, to --max_steps or the end of the last epoch."""
        step = progress.step
        for epoch in range(progress.epoch, self.settings.epoch):
            row = progress.row if epoch == progress.epoch else 0
            for rows in self.epoch_rows(epoch, row):
                if self.settings.max_steps and step >= self.settings.max_steps:
                    return
                step, row = step + 1, row + len(rows)
                yield Step(rows, list(self.process_batches(rows)), Progress(step, epoch, row))

    def epoch_rows(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Rows of the histories of each step of an epoch, (histories,) int32, from position `start` of its order on."""
        settings = self.settings
        if settings.tokens_per_batch is None:
            steps = epoch_batches(self.histories, settings.batch_size * self.passes, settings.seed, epoch, start)
        else:
            per_step = settings.tokens_per_batch * self.passes
            steps = equal_work_batches(self.target_tokens(), per_step, settings.seed, epoch, start)
        return (self.users[places] for places in steps)

    @property
    def lengths(self) -> np.ndarray:
        """(histories,) int64: items of each history that is trained on."""
        return self.data.sequences.lengths[self.users]

    def target_tokens(self) -> np.ndarray:
        """(histories,) int64: how many tokens of each are predicted in training."""
        return (np.minimum(self.lengths, self.window) - 1) * self.data.catalog.codebook.per_item

    def process_batches(self, rows: np.ndarray) -> Iterator[SeqBatch]:
        """This process's batches of a step, of the last `window` items of each history.

        Every process has equally many batches. Where there are fewer histories than processes, one without a history
        reads the step's first history and predicts nothing.
        """
        mine = rows[self.process :: self.processes]
        count = min(self.settings.gradient_accumulation_steps, max(1, len(rows) // self.processes))
        for part in np.array_split(mine if len(mine) else rows[:1], count):
            batch = training_batch(self.data.sequences.select(part).last(self.window), self.data.catalog)
            if not len(mine):
                batch = batch.without_targets()
            yield batch.pin_memory() if self.pinned else batch

    def total_steps(self, progress: Progress) -> int:
        """Number of steps of the whole run: those taken at `progress` and those to come."""
        total = progress.step
        if progress.epoch < self.settings.epoch:
            whole_epochs = self.settings.epoch - progress.epoch - 1
            total += self.epoch_steps(progress.epoch, progress.row) + whole_epochs * self.epoch_steps(0, 0)
        return max(progress.step, min(self.settings.max_steps or total, total))

    def epoch_steps(self, epoch: int, row: int) -> int:
        """Number of steps of an epoch from `row` on. Every whole epoch has equally many."""
        settings = self.settings
        if settings.tokens_per_batch is None:
            return math.ceil((self.histories - row) / (settings.batch_size * self.passes))
        work = self.target_tokens()[epoch_order(self.histories, settings.seed, epoch)]
        cuts = equal_work_cuts(work, settings.tokens_per_batch * self.passes)
        return int((cuts > row).sum()) + (row < self.histories)

    def learning_rate(self, step: Step) -> float:
        """--lr times warm-up and schedule, at the middle of a step.

        The part of the training that is done is counted in histories, or in steps where --max_steps comes first, so
        that the learning rate goes on smoothly when a run is resumed with another number of processes.
        """
        settings, progress = self.settings, step.progress
        done = (progress.epoch * self.histories + progress.row - len(step.rows) / 2) / (settings.epoch * self.histories)
        if settings.max_steps:
            done = max(done, (progress.step - 0.5) / settings.max_steps)
        if done < settings.warmup:
            return settings.lr * done / settings.warmup
        if settings.schedule == "constant":
            return settings.lr
        return settings.lr * (1 + math.cos(math.pi * (done - settings.warmup) / (1 - settings.warmup))) / 2

    def checkpoint_names(self, before: Progress, progress: Progress, stopping: bool = False) -> list[str]:
        """Names under which to save the weights after the step from `before` to `progress`; none after most steps."""
        settings = self.settings
        if settings.save_last:
            return [f"layer_{settings.tf_layer}_last.pt"] if stopping or self.is_last(progress) else []
        names, stem = [], f"layer_{settings.tf_layer}_epoch_{progress.epoch}"
        begun = before.row if before.epoch == progress.epoch else 0
        for tenth in range(1, TENTHS + 1):
            if progress.epoch == 0 and begun < -(-tenth * self.histories // TENTHS) <= progress.row:
                names.append(f"{stem}_model_{tenth:02d}.pt")
        if progress.step % settings.save_every == 0 or stopping or progress.step == settings.max_steps:
            names.append(f"{stem}_step_{progress.step}.pt")
        if progress.row == self.histories:
            names.append(f"{stem}.pt")
        return names

    def evaluation_due(self, progress: Progress, last: bool = False) -> bool:
        """Whether to evaluate on the held-out histories at `progress`: every so many steps, and after the last.

        `last` says that this is the last step for another reason than the plan's.
        """
        last = last or self.is_last(progress)
        return bool(self.settings.eval_every) and (last or progress.step % self.settings.eval_every == 0)

    def is_last(self, progress: Progress) -> bool:
        """Whether the plan ends at `progress`: after --max_steps steps or --epoch passes."""
        here = (progress.epoch, progress.row)
        return progress.step == self.settings.max_steps or here == (self.settings.epoch - 1, self.histories)
