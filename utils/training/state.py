"""Checkpoints of a run: weights in the release's form, and beside the last ones a training state for --resume.

    ckpt/layer_3_epoch_0_step_5000.pt       weights, as eval.py and predict.py read them
                                  .json     configuration, step, loss, settings, data, tokenizer, versions
                                  .toml     settings as --config reads them
                                  .resume   weights, AdamW's moments and the JSON in one file: whole or not there

There is no other state: the seed, the step and the process decide the random numbers of a step (`step_seed`), the seed
and the epoch the order of the histories.
"""

import datetime
import itertools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from utils.checkpoint import UNSAID, config_path, load_tensors, metadata_path, save_state, save_tensors
from utils.errors import InputError, reason, shown
from utils.files import lock_folder
from utils.training.plan import Progress
from utils.training.settings import AUTO, LATEST

ENDING = ".resume"
FORMAT = 2
STATES = 2  # training states that are kept where --keep does not say how many
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class SavedState(NamedTuple):
    """A training state on disk."""

    path: Path
    metadata: dict[str, Any]  # as in the JSON
    tensors: dict[str, Any]  # "model" and "optimizer", mapped: read when they are used
    progress: Progress  # where training was when it was written


def step_seed(seed: int, step: int, process: int) -> int:
    """64 bits that seed the random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def find_state(folder: str | Path, wanted: str) -> SavedState | None:
    """Find and read the training state that --resume asks for.

    Args:
        folder: --ckpt_dir.
        wanted: "latest", the last one that is whole, see `_age`; "auto", the same or None where there is none; the
            path of a state or of the weights beside it; or another folder, for the last one there.

    Raises:
        InputError: there is none, or the one that was named is damaged.
    """
    if wanted not in (LATEST, AUTO) and Path(wanted).is_dir():
        folder, wanted = wanted, LATEST
    if wanted not in (LATEST, AUTO):
        path = Path(wanted).with_suffix(ENDING)
        if not path.is_file():
            found = ", ".join(sorted(state.name for state in path.parent.glob(f"*{ENDING}")))
            raise InputError(
                f"--resume {wanted}: {path} does not exist. Training states are kept beside the last checkpoints: "
                f"{found or f'there are none in {path.parent}'}."
            )
        return read_state(path)
    damaged = []
    for path in sorted(Path(folder).glob(f"*{ENDING}"), key=_age, reverse=True):
        try:
            saved = read_state(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        for message in damaged if first_process() else ():
            print(f"passed over: {message}")  # noqa: T201 - the user should know
        return saved
    if damaged:
        raise InputError(damaged[0])
    if wanted == LATEST:
        raise InputError(f"--resume: {folder} has no training state (*{ENDING}). Give --resume auto to start.")
    return None


def _age(path: Path) -> tuple[float, float]:
    """Sort key of training states: the number of the start that wrote it, then its step; infinite if unreadable.

    No clock is asked, because clocks may be wrong. The start comes first: a run that was taken back to an earlier
    state, or begun anew in the same folder, must not resume from steps that it has given up.
    """
    try:
        saved = read_state(path, in_full=False)
    except InputError:
        return math.inf, math.inf
    return saved.metadata["starts"], saved.progress.step


def first_process() -> bool:
    """Whether this is the one process that reads in full, and prints; known before accelerate is."""
    return os.environ.get("RANK", "0") == "0"


def read_state(path: Path, in_full: bool | None = None) -> SavedState:
    """Read a training state, its tensors mapped from the file.

    Only with `in_full` are they read, and held against their checksums; by default the first process of several does.

    Raises:
        InputError: damaged, of another format, or no such state.
    """
    try:
        with path.open("rb") as file:
            loaded = load_tensors(file, mapped=True, in_full=first_process() if in_full is None else in_full)
        metadata = loaded["about"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {shown(metadata['format'])}, this program reads {FORMAT}")
        for name in itertools.chain.from_iterable(metadata["written"]):  # files that --keep removes
            if Path(name).name != name or not name.endswith(".pt"):
                raise ValueError(f"{shown(name)} is no checkpoint beside it")
        if missing := {"training", "config", "starts", "best"} - metadata.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        tensors = {"model": loaded["model"], "optimizer": loaded["optimizer"]}
        return SavedState(path, metadata, tensors, Progress(**metadata["place"]))
    except Exception as error:  # torch and zipfile raise many types for damaged or refused files
        raise InputError(
            f"{path} is not a whole training state ({reason(error)}). Name an earlier one (--resume PATH), or start "
            "without --resume."
        ) from error


def restore(saved: SavedState, model: nn.Module, optimizer: Optimizer, accelerator: Accelerator) -> None:
    """Load weights and moments into a prepared model and optimizer; one process reads them and sends the others theirs.

    The learning rate and weight decay stay as they are: what was typed holds, not what the state was written with.
    """
    several = accelerator.num_processes > 1
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=several)
    tensors = saved.tensors if accelerator.is_main_process else {"model": {}, "optimizer": {}}
    settings = [{name: group[name] for name in ("lr", "weight_decay")} for group in optimizer.param_groups]
    set_model_state_dict(model, tensors["model"], options=options)
    set_optimizer_state_dict(model, optimizer.optimizer, tensors["optimizer"], options=options)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def check_same_run(saved: SavedState, run_metadata: dict[str, Any]) -> None:
    """Raise InputError unless a training state belongs to the data, codes and sizes at hand."""
    for name, what in (("data", "other data"), ("tokenizer", "codes of another tokenizer"), ("config", "other sizes")):
        then, now = saved.metadata.get(name), run_metadata.get(name)
        if name == "config":
            # Dropout may change, and older states do not say all.
            then, now = ({**UNSAID, **config, "dropout": None} for config in (then, now))
        if then != now:
            raise InputError(
                f"{saved.path} was trained on {what} ({name} {then}) than those of "
                f"{run_metadata['training']['data_path']} ({now}). Give what it was trained on, or start without "
                "--resume."
            )


class Checkpoints:
    """Writes the checkpoints of a run, from one process, and removes old ones."""

    def __init__(
        self,
        folder: str | Path,
        keep: int | None,
        accelerator: Accelerator,
        run_metadata: dict[str, Any],
        config: dict[str, Any],
    ):
        """Claim the folder --ckpt_dir for a run.

        The JSON of every checkpoint repeats `run_metadata`, and its TOML has the settings `config`, by flag.
        `keep` is the number of saves that are kept; None keeps all, and the training states of the last two.
        InputError if another run is writing to the folder.
        """
        self.folder, self.keep, self.accelerator, self.run_metadata = Path(folder), keep, accelerator, run_metadata
        self.config = config
        if accelerator.is_main_process:
            self.lock = lock_folder(self.folder, "--ckpt_dir")
        earlier = [start for start, _ in map(_age, self.folder.glob(f"*{ENDING}")) if start < math.inf]
        self.starts = 1 + max(earlier, default=0)  # number of this start of a run in the folder
        self.written: list[list[str]] = []  # of each save of this run, in order, the names of its checkpoints
        self.best: dict[str, Any] | None = None  # step and values of the best evaluation, on what, how long ago

    def begin(self) -> Progress:
        """Start a new run; say so when it will replace checkpoints of an earlier one."""
        if any(self.folder.glob(f"*{ENDING}")):
            self.accelerator.print(
                f"{self.folder} holds checkpoints of an earlier run: those of the same names will be replaced. "
                "To go on with it, stop and give --resume; to keep them, give another --ckpt_dir."
            )
        return Progress()

    def resume(self, saved: SavedState, model: nn.Module, optimizer: Optimizer) -> Progress:
        """Resume from a training state: load it, and take over its checkpoints where they are in the same folder.

        InputError if it was trained on other data or with other sizes.
        """
        check_same_run(saved, self.run_metadata)
        restore(saved, model, optimizer, self.accelerator)
        elsewhere = saved.path.parent.resolve() != self.folder.resolve()  # files of those names here are of others
        self.written, self.best = [] if elsewhere else list(saved.metadata["written"]), saved.metadata["best"]
        held_out = self.run_metadata.get("held_out")
        if self.best and held_out and self.best.get("held_out", held_out) != held_out:
            self.accelerator.print("other held-out histories than before: the best weights are chosen anew")
            self.best = None
        return saved.progress

    def save(self, names: list[str], model: nn.Module, optimizer: Optimizer, progress: Progress, loss: float) -> None:
        """Write the weights under each of `names`, and the training state beside the last.

        All processes must call this together, because with FSDP each holds a part.

        Raises:
            InputError: a weight is not finite; nothing is written.
            DiskError: no space; earlier checkpoints stay.
        """
        weights, moments = get_state_dict(model, optimizer.optimizer, options=WHOLE)  # empty in all processes but one
        if not self.accelerator.is_main_process:
            return
        check_weights(weights, progress.step)
        earlier = ([name for name in save if name not in names] for save in self.written)
        self.written = [save for save in earlier if save] + [names]
        metadata = self.metadata(progress, loss=loss)
        for name in names:
            save_state(self.folder / name, weights, metadata, self.config)
        state = {"about": metadata, "model": weights, "optimizer": moments}
        save_tensors((self.folder / names[-1]).with_suffix(ENDING), state)
        self.remove_old()

    def save_best(self, name: str, model: nn.Module, progress: Progress, values: dict[str, float]) -> None:
        """Write the best weights so far; `values` has "eval_loss" in nats and, where they are ranked, "eval_ndcg"."""
        held_out = self.run_metadata.get("held_out")
        self.best = {"step": progress.step, **values, "held_out": held_out, "evaluations_since": 0}
        weights = get_model_state_dict(model, options=WHOLE)
        if self.accelerator.is_main_process:
            check_weights(weights, progress.step)
            save_state(self.folder / name, weights, self.metadata(progress, **values), self.config)

    def count_evaluation(self) -> None:
        """Count an evaluation that has found nothing better."""
        self.best = {**self.best, "evaluations_since": self.evaluations_since_best() + 1}

    def evaluations_since_best(self) -> int:
        """How many evaluations in a row have found nothing better."""
        return (self.best or {}).get("evaluations_since", 0)

    def metadata(self, progress: Progress, **losses: float) -> dict[str, Any]:
        """What the JSON of one checkpoint says, in plain values; `losses` in nats."""
        return {
            "format": FORMAT,
            **self.run_metadata,
            "step": progress.step,
            **losses,
            "place": progress._asdict(),
            "best": self.best,
            "starts": self.starts,
            "written": self.written,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        }

    def remove_old(self) -> None:
        """Remove the checkpoints of all but the last `keep` saves, or the training states of all but the last two."""
        for name in itertools.chain.from_iterable(self.written[: -(self.keep or STATES)]):
            path = self.folder / name
            state = path.with_suffix(ENDING)
            for file in (path, metadata_path(path), config_path(path), state) if self.keep else (state,):
                file.unlink(missing_ok=True)
        if self.keep:
            self.written = self.written[-self.keep :]


def check_weights(weights: dict[str, Any], step: int) -> None:
    """Raise InputError that names the first tensor with NaN or infinity in it, if there is one."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"{name} holds NaN or infinity after step {step}: training has diverged. Lower --lr or give "
                "--max_grad_norm, and go on from the last checkpoint (--resume); nothing was overwritten."
            )
