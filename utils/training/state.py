"""Checkpoints of a run: weights in the release's form, and beside the last ones all that --resume needs.

    ckpt/layer_3_epoch_0_step_5000.pt       weights, as eval.py and predict.py read them
                                  .json     configuration, step, loss, settings, data, tokenizer, versions
                                  .resume   weights, AdamW's moments and the JSON in one file: whole or not there

What the random numbers of a step are depends on the seed, the step and the process alone (`step_seed`), and so does the
order of the histories: there is no other state.
"""

import datetime
import itertools
import math
import os
from collections.abc import Iterator
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

from utils.checkpoint import load_tensors, metadata_path, save_state, save_tensors
from utils.errors import InputError, reason, shown
from utils.files import lock_folder
from utils.training.plan import Place

ENDING = ".resume"
FORMAT = 2
STATES = 2  # of the last saves, kept where --keep does not say how many
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
LATEST, AUTO = "latest", "auto"  # what --resume may say in place of a path


class Saved(NamedTuple):
    """A training state on disk."""

    path: Path
    metadata: dict[str, Any]  # as in the JSON
    tensors: dict[str, Any]  # "model" and "optimizer", mapped: read when they are used

    @property
    def place(self) -> Place:
        """Where it was written."""
        return Place(**self.metadata["place"])


def step_seed(seed: int, step: int, process: int) -> int:
    """64 bits for the random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def find_state(folder: str | Path, wanted: str) -> Saved | None:
    """The training state that --resume asks for.

    Args:
        folder: --ckpt_dir.
        wanted: "latest", the last one that is whole, see `_order`; "auto", the same or None where there is none; the
            path of a state or of the weights beside it; or another folder, for the last one there.

    Raises:
        InputError: there is none, or the one that was named is damaged.
    """
    if wanted not in (LATEST, AUTO) and Path(wanted).is_dir():
        folder, wanted = wanted, LATEST
    if wanted not in (LATEST, AUTO):
        path = Path(wanted).with_suffix(ENDING)
        if not path.is_file():
            raise InputError(
                f"--resume {wanted}: {path} does not exist. Training states are kept beside the last checkpoints: "
                f"{_names(path.parent)}."
            )
        return read_state(path)
    damaged = []
    for path in sorted(Path(folder).glob(f"*{ENDING}"), key=_order, reverse=True):
        try:
            saved = read_state(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        for message in damaged if _first_process() else ():
            print(f"passed over: {message}")  # noqa: T201 - the user should know
        return saved
    if damaged:
        raise InputError(damaged[0])
    if wanted == LATEST:
        raise InputError(f"--resume: {folder} has no training state (*{ENDING}). Give --resume auto to start.")
    return None


def _order(path: Path) -> tuple[float, float]:
    """Which start of a run has written a state, and at which step; one that cannot be read is first to be tried.

    By no clock, which may be wrong. The start comes first: a run that was taken back to an earlier state, or begun anew
    in the same folder, is not to go on from steps that it has given up.
    """
    try:
        saved = read_state(path, in_full=False)
    except InputError:
        return math.inf, math.inf
    return saved.metadata["starts"], saved.place.step


def _first_process() -> bool:
    """Whether this is the one process that reads in full, and tells; known before accelerate is."""
    return os.environ.get("RANK", "0") == "0"


def _names(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob(f"*{ENDING}"))
    return ", ".join(found) if found else f"there are none in {folder}"


def read_state(path: Path, in_full: bool | None = None) -> Saved:
    """A training state, its tensors mapped from the file.

    Only with `in_full` are they read, and held against their checksums; by default the first process of several does.

    Raises:
        InputError: damaged, of another format, or no such state.
    """
    try:
        with path.open("rb") as file:
            loaded = load_tensors(file, mapped=True, in_full=_first_process() if in_full is None else in_full)
        metadata = loaded["about"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {shown(metadata['format'])}, this program reads {FORMAT}")
        saved = Saved(path, metadata, {"model": loaded["model"], "optimizer": loaded["optimizer"]})
        if not all(type(number) is int and number >= 0 for number in saved.place):
            raise ValueError(f"place {saved.place}")
        kinds = {"training": dict, "config": dict, "starts": int, "written": list, "time": str, "best": dict | None}
        for name, kind in kinds.items():
            if not isinstance(metadata[name], kind):
                raise ValueError(f"{name} is {shown(metadata[name])}")
        for name in itertools.chain.from_iterable(metadata["written"]):  # which --keep removes
            if Path(name).name != name or not name.endswith(".pt"):
                raise ValueError(f"{shown(name)} is no checkpoint beside it")
        if metadata["best"] is not None and not isinstance(metadata["best"]["eval_loss"], float):
            raise ValueError(f"best is {shown(metadata['best'])}")
    except Exception as error:  # torch and zipfile raise many types for damaged or refused files
        raise InputError(
            f"{path} is not a whole training state ({reason(error)}). Name an earlier one (--resume PATH), or start "
            "without --resume."
        ) from error
    return saved


def restore(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Weights and moments into a prepared model and optimizer; one process reads them, the others are sent theirs.

    Raises:
        InputError: of another model.
    """
    several = accelerator.num_processes > 1
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=several)
    reads = accelerator.is_main_process
    settings = [{name: group[name] for name in ("lr", "weight_decay")} for group in optimizer.param_groups]
    try:
        set_model_state_dict(model, saved.tensors["model"] if reads else {}, options=options)
        moments = saved.tensors["optimizer"] if reads else {}
        set_optimizer_state_dict(model, optimizer.optimizer, moments, options=options)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{saved.path} does not fit this model ({reason(error)}). Start without --resume.") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # what was typed holds, not what it was when the state was written


def check_same_run(saved: Saved, facts: dict[str, Any]) -> None:
    """InputError unless a training state belongs to the data, codes and sizes at hand."""
    for name, what in (("data", "other data"), ("tokenizer", "codes of another tokenizer"), ("config", "other sizes")):
        then, now = saved.metadata.get(name), facts.get(name)
        if name == "config":
            then, now = ({**config, "dropout": None} for config in (then, now))  # which may change
        if then != now:
            raise InputError(
                f"{saved.path} was trained on {what} ({name} {then}) than those of {facts['training']['data_path']} "
                f"({now}). Give what it was trained on, or start without --resume."
            )


class Checkpoints:
    """Writes the checkpoints of a run, from one process, and removes old ones."""

    def __init__(self, folder: str | Path, keep: int | None, accelerator: Accelerator, facts: dict[str, Any]):
        """What is written beside every checkpoint is `facts`; `keep` None removes training states only.

        Raises:
            InputError: another run is writing to the folder.
        """
        self.folder, self.keep, self.accelerator, self.facts = Path(folder), keep, accelerator, facts
        if accelerator.is_main_process:
            self.lock = lock_folder(self.folder, "--ckpt_dir")
        self.starts = 1 + max((start for start, _ in map(_order, self.states()) if start < math.inf), default=0)
        self.written: list[list[str]] = []  # of each save of this run, in order, the names of its checkpoints
        self.best: dict[str, Any] | None = None  # step and loss of the lowest evaluation loss, and on what

    def states(self) -> Iterator[Path]:
        """The training states in the folder."""
        return self.folder.glob(f"*{ENDING}")

    def begin(self) -> Place:
        """Where a new run starts; tells when it will replace checkpoints of an earlier one."""
        if any(self.states()):
            self.accelerator.print(
                f"{self.folder} holds checkpoints of an earlier run: those of the same names will be replaced. "
                "To go on with it, stop and give --resume; to keep them, give another --ckpt_dir."
            )
        return Place()

    def go_on_from(self, saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> Place:
        """Take over where an earlier part of the run has stopped.

        Raises:
            InputError: it was trained on other data or with other sizes.
        """
        check_same_run(saved, self.facts)
        restore(saved, model, optimizer, self.accelerator)
        elsewhere = saved.path.parent.resolve() != self.folder.resolve()  # files of those names here are of others
        self.written, self.best = [] if elsewhere else list(saved.metadata["written"]), saved.metadata["best"]
        held_out = self.facts.get("held_out")
        if self.best and held_out and self.best.get("held_out", held_out) != held_out:
            self.accelerator.print("other held-out histories than before: the best weights are chosen anew")
            self.best = None
        return saved.place

    def save(self, names: list[str], model: nn.Module, optimizer: torch.optim.Optimizer, place: Place, loss: float):
        """Write the weights under each of `names`, and the training state beside the last.

        Raises:
            InputError: a weight is not finite; nothing is written.
            DiskError: no space; earlier checkpoints stay.
        """
        weights, moments = full_state(model, optimizer)
        if not self.accelerator.is_main_process:
            return
        check_weights(weights, place.step)
        earlier = ([name for name in save if name not in names] for save in self.written)
        self.written = [save for save in earlier if save] + [names]
        metadata = self.metadata(place, loss=loss)
        for name in names:
            save_state(self.folder / name, weights, metadata)
        save_tensors(
            (self.folder / names[-1]).with_suffix(ENDING), {"about": metadata, "model": weights, "optimizer": moments}
        )
        self.remove_old()

    def save_best(self, name: str, model: nn.Module, place: Place, loss: float):
        """Write the weights with the lowest evaluation loss so far, `loss` in nats."""
        self.best = {"step": place.step, "eval_loss": loss, "held_out": self.facts.get("held_out")}
        weights = get_model_state_dict(model, options=WHOLE)
        if self.accelerator.is_main_process:
            check_weights(weights, place.step)
            save_state(self.folder / name, weights, self.metadata(place, eval_loss=loss))

    def metadata(self, place: Place, **losses: float) -> dict[str, Any]:
        """What is told of a checkpoint, in plain values; `losses` in nats."""
        return {
            "format": FORMAT,
            **self.facts,
            "step": place.step,
            **losses,
            "place": place._asdict(),
            "best": self.best,
            "starts": self.starts,
            "written": self.written,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        }

    def remove_old(self) -> None:
        """The checkpoints of all but the last `keep` saves, or the training states of all but the last two."""
        for name in itertools.chain.from_iterable(self.written[: -(self.keep or STATES)]):
            path = self.folder / name
            doomed = (path, metadata_path(path), path.with_suffix(ENDING)) if self.keep else (path.with_suffix(ENDING),)
            for file in doomed:
                file.unlink(missing_ok=True)
        if self.keep:
            self.written = self.written[-self.keep :]


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and moments by parameter name, whole, in the memory of the first process; empty in the others.

    All processes call this together: with FSDP each holds a part.
    """
    return get_state_dict(model, optimizer.optimizer, options=WHOLE)


def check_weights(weights: dict[str, Any], step: int) -> None:
    """InputError naming the first tensor that holds NaN or infinity."""
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"{name} holds NaN or infinity after step {step}: training has diverged. Lower --lr or give "
                "--max_grad_norm, and go on from the last checkpoint (--resume); nothing was overwritten."
            )
