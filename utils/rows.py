"""What a row of --results says beside its figures, so that it can be compared later: program, machine, model, data."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from utils.datasets import is_id
from utils.files import fingerprint

LIBRARIES = ("torch", "transformers", "numpy")
ROOT = Path(__file__).resolve().parents[1]  # of the program
STARTED_FROM = ("init_from", "refit_of")  # notes of other weights in the JSON beside a checkpoint


def about_program(program: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Which program made a row, when (UTC), on what machine, with which versions and settings (every flag)."""
    return {
        "program": program,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": versions(),
        "settings": {name: written(value) for name, value in vars(args).items()},
    }


def about_model(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a checkpoint: its sizes, its training, and the seed of that, None where it is unknown.

    Args:
        config: the sizes by name.
        metadata: the JSON beside the checkpoint, which may be of others. Its settings of training, its other plain
            values, such as `step`, and the names of the weights that training started from become `training`.
    """
    settings = metadata.get("training")
    settings = settings if isinstance(settings, dict) else {}
    started = {name: metadata[name].get("name") for name in STARTED_FROM if isinstance(metadata.get(name), dict)}
    training = {
        name: value
        for name, value in {**metadata, **started, **settings}.items()
        if value is None or isinstance(value, (str, int, float))
    }
    seed = settings.get("seed")
    return {"seed": seed if is_id(seed) else None, "config": dict(config), "training": training}


def about_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The fingerprints of the files of a data set that exist, by name."""
    return {name: fingerprint(folder / name) for name in names if (folder / name).is_file()}


def machine(device: torch.device) -> dict[str, str | int]:
    """Name of the GPU or processor that computed, the cores that the process may use, and the system."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "cores": cores, "system": platform.platform()}


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


def versions(root: Path = ROOT) -> dict[str, str | None]:
    """Versions of Python and of libraries, and the program's commit, None where `root` is no git checkout."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **libraries, "commit": commit(root)}


def commit(root: Path) -> str | None:
    """The commit of a git checkout, with `-dirty` where files of it are changed; None where there is none or no git."""
    if not (root / ".git").exists():  # a checkout further up is of something else
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def written(value: Any) -> Any:
    """A flag's value as JSON takes it: files by their names, NAME=FILE as a dict."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {name: str(path) for name, path in value}
    return value
