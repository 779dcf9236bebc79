"""Checkpoints of a run: weights in the release's form, and beside the last ones all that --resume needs.

    ckpt/layer_3_epoch_0_step_5000.pt       weights, as eval.py and predict.py read them
                                  .json     configuration, step, loss, settings, data, tokenizer, versions
                                  .resume   weights, AdamW's moments and the JSON in one file: whole or not there

What the random numbers of a step are depends on the seed, the step and the process alone (`step_seed`), and so does the
order of the histories: there is no other state.
"""

import datetime
import fcntl
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

from utils.checkpoint import about_path, load_tensors, save_state, save_tensors
from utils.errors import InputError
from utils.plan import Place

ENDING = ".resume"
FORMAT = 1
STATES = 2  # kept where --keep does not say how many
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
LATEST, AUTO = "latest", "auto"  # what --resume may say in place of a path


class Saved(NamedTuple):
    """A training state on disk."""

    path: Path
    about: dict[str, Any]  # as in the JSON
    tensors: dict[str, Any]  # "model" and "optimizer", mapped: read when they are used

    @property
    def place(self) -> Place:
        """Where it was written."""
        return Place(**self.about["place"])


def step_seed(seed: int, step: int, process: int) -> int:
    """64 bits for the random numbers (dropout) of one step in one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])


def find_state(folder: str | Path, wanted: str) -> Saved | None:
    """The training state that --resume asks for.

    Args:
        folder: --ckpt_dir.
        wanted: "latest", the one written last of those that are whole; "auto", the same or None where there is none;
            the path of a state or of the weights beside it; or another folder, for the one written last there.

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
    whole, damaged = [], []
    for path in Path(folder).glob(f"*{ENDING}"):
        try:
            whole.append(read_state(path))
        except InputError as error:
            damaged.append(str(error))
    if whole:
        for message in damaged:
            print(f"passed over: {message}")  # noqa: T201 - the user should know
        return max(whole, key=lambda saved: saved.about["time"])
    if damaged:
        raise InputError(damaged[0])
    if wanted == LATEST:
        raise InputError(f"--resume: {folder} has no training state (*{ENDING}). Start without --resume.")
    return None


def _names(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob(f"*{ENDING}"))
    return ", ".join(found) if found else f"there are none in {folder}"


def read_state(path: Path) -> Saved:
    """A training state, its tensors mapped from the file.

    Raises:
        InputError: damaged, of another format, or no such state.
    """
    try:
        with path.open("rb") as file:
            loaded = load_tensors(file, mapped=True)
        about = loaded["about"]
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, this program reads {FORMAT}")
        saved = Saved(path, about, {"model": loaded["model"], "optimizer": loaded["optimizer"]})
        if not all(type(number) is int and number >= 0 for number in saved.place):
            raise ValueError(f"place {saved.place}")
        kinds = {"training": dict, "config": dict, "written": list, "time": str, "best": (dict, type(None))}
        for name, kind in kinds.items():
            if not isinstance(about[name], kind):
                raise ValueError(f"{name} is {about[name]!r}")
        for name in about["written"]:  # which --keep removes
            if Path(name).name != name or not name.endswith(".pt"):
                raise ValueError(f"{name!r} is no checkpoint beside it")
        if about["best"] is not None and not isinstance(about["best"]["eval_loss"], float):
            raise ValueError(f"best is {about['best']!r}")
    except Exception as error:  # torch and zipfile raise many types for damaged or refused files
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is not a whole training state ({reason}). Name an earlier one (--resume PATH), or start without "
            "--resume."
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
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(f"{saved.path} does not fit this model ({reason}). Start without --resume.") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # what was typed holds, not what it was when the state was written


def check_same_run(saved: Saved, facts: dict[str, Any]) -> None:
    """InputError unless a training state belongs to the data, codes and sizes at hand."""
    for name, what in (("data", "other data"), ("tokenizer", "codes of another tokenizer"), ("config", "other sizes")):
        then, now = saved.about.get(name), facts.get(name)
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
            self.lock = locked(self.folder)
        self.written: list[str] = []  # names of this run's checkpoints, in order
        self.best: dict[str, Any] | None = None  # step and loss of the lowest evaluation loss, and on what

    def begin(self) -> Place:
        """Where a new run starts; tells when it will replace checkpoints of an earlier one."""
        if any(self.folder.glob(f"*{ENDING}")):
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
        self.written, self.best = list(saved.about["written"]), saved.about["best"]
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
        self.written = [name for name in self.written if name not in names] + names
        about = self.about(place, loss=loss)
        for name in names:
            save_state(self.folder / name, weights, about)
        save_tensors(
            (self.folder / names[-1]).with_suffix(ENDING), {"about": about, "model": weights, "optimizer": moments}
        )
        self.remove_old()

    def save_best(self, name: str, model: nn.Module, place: Place, loss: float):
        """Write the weights with the lowest evaluation loss so far, `loss` in nats."""
        self.best = {"step": place.step, "eval_loss": loss, "held_out": self.facts.get("held_out")}
        weights = get_model_state_dict(model, options=WHOLE)
        if self.accelerator.is_main_process:
            check_weights(weights, place.step)
            save_state(self.folder / name, weights, self.about(place, eval_loss=loss))

    def about(self, place: Place, **losses: float) -> dict[str, Any]:
        """What is told of a checkpoint, in plain values; `losses` in nats."""
        return {
            "format": FORMAT,
            **self.facts,
            "step": place.step,
            **losses,
            "place": place._asdict(),
            "best": self.best,
            "written": self.written,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        }

    def remove_old(self) -> None:
        """All but the last `keep` checkpoints, or the training states of all but the last two."""
        old = self.written[: -(self.keep or STATES)]
        for name in old:
            path = self.folder / name
            doomed = (path, about_path(path), path.with_suffix(ENDING)) if self.keep else (path.with_suffix(ENDING),)
            for file in doomed:
                file.unlink(missing_ok=True)
        if self.keep:
            self.written = self.written[-self.keep :]


def locked(folder: Path) -> int:
    """A descriptor that keeps other runs from writing to a folder until this process ends, however it ends.

    Raises:
        InputError: another run has it: checkpoints of two, under the same names, would replace each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"another run is writing its checkpoints to {folder}. Wait for it, stop it, or give another --ckpt_dir."
        ) from error
    except OSError:  # a network disk without locks
        pass
    return descriptor


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
