"""Weights on disk, in the release's `.pt` form, whole or in zip parts, or in a directory (utils/pretrained.py).

They are always read as data only.
"""

import glob
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from utils.config import save_settings
from utils.errors import InputError, reason, shown
from utils.files import MOST_UNPACKED, atomic_write, fingerprint, limited_memory, read_json, save_json
from utils.fsq import PUBLISHED
from utils.masks import MASKS
from utils.pretrained import is_finite, kind_of, load_folder, read_folder

PREDICTED = CODES, ITEMS = ("codes", "items")  # what a model predicts: the four codes of the next item, or the item
# What shapes do not show, and what it is in a checkpoint that does not say so, such as the release's.
UNSAID = {"heads": None, "predicts": CODES, "attention": "item_block", "auxiliary": True, **PUBLISHED.noted()}
NOTED = (*UNSAID, "embedding_width")  # which shapes do not show either where there is no auxiliary embedding
PART = ".zip.part"  # NAME.pt.zip.partaa, NAME.pt.zip.partab, …
MOST_LISTED = 64  # numbers in a list that is noted with weights
TENSOR_MEMORY = 4  # times its size may a file take: it is read into memory, and a tensor may have two names
# Buffers that older transformers versions wrote beside the weights; they hold masks, which are computed here.
IGNORED_ENDINGS = (".attn.bias", ".attn.masked_bias")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU; zip parts beside `path` are joined on the fly.

    Of a directory of weights, all tensors are given as they are, so that `fill_module` finds what is too many.

    Raises:
        InputError: no such file, a damaged one, one that holds more than tensors, or weights that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        return load_folder(path)
    parts = find_parts(path)
    if not parts and not path.is_file():
        raise InputError(
            f"{path} does not exist, nor do parts {path.name}{PART}aa, …. Make one (models: pre_train.py, "
            "tokenizers: ae_trainer.py), fetch the release (python data_processing/data_download.py --release weights) "
            "or name another file (models: --ckpt_path or --init_from, tokenizers: --vae_ckpt)."
        )
    try:
        with _joined(parts) if parts else path.open("rb") as file:
            state = load_tensors(file)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Change its permissions.") from error
    except Exception as error:  # torch and zipfile raise many types for damaged or refused files
        raise InputError(
            f"{path} is not a whole checkpoint of plain tensors ({reason(error)}); truncated, corrupt, or made to do "
            "harm: refused. Fetch or write it again."
        ) from error
    attributes = getattr(state, "__dict__", {}).keys() - {"_metadata"}  # others may stand in for its methods
    if not isinstance(state, dict) or attributes or not all(_is_plain(*entry) for entry in state.items()):
        raise InputError(f"{path} holds no plain mapping from names to tensors. Give weights (a state dict), not more.")
    for name, value in state.items():
        if value.is_floating_point() and not is_finite(value):
            raise InputError(f"{path}: {shown(name)} holds NaN or infinity. Use an earlier checkpoint.")
    kept = ((name, value) for name, value in state.items() if not name.endswith(IGNORED_ENDINGS))
    weights = OrderedDict((name.removeprefix("module."), value) for name, value in kept)
    weights._metadata = {"": noted_config(state)}
    return weights


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def load_tensors(file: IO[bytes], mapped: bool = False, in_full: bool = True) -> Any:
    """Read what torch.save wrote, as data only, on the CPU; unlike torch alone, this notices flipped bits.

    With `mapped`, the tensors of a file that has a name stay on disk until they are used. Without `in_full`, they are
    not held against their checksums.

    Raises:
        ValueError: the file is damaged, asks for more than tensors and plain values, or has records or tensors that
            are larger than it is.
    """
    size = file.seek(0, os.SEEK_END)
    if zipfile.is_zipfile(file):
        with limited_memory(0), zipfile.ZipFile(file) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
            if unpacked > size:  # torch stores its records as they are
                raise ValueError(f"its {size} bytes unpack to {unpacked}")
            damaged = archive.testzip() if in_full else None
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
    file.seek(0)
    try:
        with limited_memory(TENSOR_MEMORY * size):
            loaded = torch.load(file.name if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whose words go on to say how to load it nevertheless
        asked = re.search(r"GLOBAL (\S+)", str(error))
        short = isinstance(error, MemoryError) or "memory" in str(error)
        found = "it asks for more memory than its size needs" if short else "it is no whole file of torch.save"
        raise ValueError(f"it asks for {asked[1]}" if asked else found) from error
    held = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(loaded))
    if held > TENSOR_MEMORY * size:  # the same few numbers again and again, until they are copied
        raise ValueError(f"its {size} bytes claim tensors of {held}")
    return loaded


def _tensors_in(loaded: Any) -> Iterator[Tensor]:
    """Yield the tensors in dicts, lists and tuples; each container is looked into once."""
    waiting, seen = [loaded], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def find_parts(path: Path) -> list[Path]:
    """Find the zip parts of a checkpoint in order, for `NAME.pt` or one of the parts; none when it is a whole file."""
    if path.is_file() and PART not in path.name:
        return []
    stem = path.name.split(PART)[0]
    parts = sorted(part for part in path.parent.glob(f"{glob.escape(stem)}{PART}*") if part.is_file())
    for number, part in enumerate(parts):
        expected = f"{stem}{PART}{chr(ord('a') + number // 26)}{chr(ord('a') + number % 26)}"
        if part.name != expected:
            raise InputError(f"{path.parent / expected} is missing, but {part.name} is there. Fetch all parts.")
    return parts


def _joined(parts: list[Path]) -> IO[bytes]:
    """Unzip the one file of weights in a zip archive that is given in parts."""
    with tempfile.TemporaryFile() as archive:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, archive)
        size = archive.tell()
        with zipfile.ZipFile(archive) as unzipped:
            weights = [name for name in unzipped.namelist() if name.endswith(".pt") and "__MACOSX" not in name]
            if len(weights) != 1:
                raise ValueError(f"the archive holds {len(weights)} .pt files, expected one")
            unpacked = unzipped.getinfo(weights[0]).file_size
            if unpacked > MOST_UNPACKED * size:
                raise ValueError(f"its {size} bytes unpack to {unpacked}")
            with limited_memory(MOST_UNPACKED * size):
                return io.BytesIO(unzipped.read(weights[0]))


def fill_module(module: nn.Module, state: dict[str, Tensor], source: str | Path, copy: bool = True) -> None:
    """Load a complete state dict; raise InputError that names the first tensors missing, unknown or misshapen.

    Without a `copy` the module then has the given tensors themselves.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unknown {shown(name)}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems += [
        f"{name} is {value.dtype}, expected floating-point numbers"
        for name, value in state.items()
        if name in own and not value.is_floating_point()
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{source} does not fit this model: {'; '.join(problems[:3])}{more}.")
    module.load_state_dict(state, assign=not copy)


def weight_files(path: str | Path) -> list[Path]:
    """The file of weights that a checkpoint's path stands for, or its zip parts."""
    path = Path(path)
    kind = kind_of(path)
    return [path / kind.file] if kind else find_parts(path) or [path]


def metadata_path(path: str | Path) -> Path:
    """Path of the JSON beside a checkpoint."""
    path = Path(path)
    return path.with_name(path.name.split(PART)[0]).with_suffix(".json")


def config_path(path: str | Path) -> Path:
    """Path of the TOML beside a checkpoint, which has the settings that it was trained with for --config."""
    return metadata_path(path).with_suffix(".toml")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the JSON beside a checkpoint, or in a directory of weights; empty where there is none, as for the release.

    InputError if it was written with other weights: a run was killed between the two.
    """
    path, beside = Path(path), metadata_path(path)
    if path.is_dir():
        return read_folder(path)
    metadata = read_json(beside, missing_ok=True)
    weights = metadata.get("weights")  # older ones have none
    if weights is not None and PART not in path.name and path.is_file() and weights != fingerprint(path):
        raise InputError(
            f"{beside} was written with other weights than {path} holds now. Remove it if you know that these are the "
            "ones you want; otherwise write or fetch both again."
        )
    return metadata


def save_state(
    path: str | Path, state: dict[str, Tensor], metadata: dict[str, Any], config: dict[str, Any] | None = None
) -> None:
    """Write weights in the release's form, and `metadata` (plain values) as JSON beside them, each atomically.

    `config`, settings by name, gets a file of TOML beside them, too.

    The JSON gets the fingerprint of the weights. Of `metadata["config"]`, what shapes do not show is also written with
    the weights, in the `_metadata` of the state dict, which torch saves and other programs do not look at.
    """
    weights = OrderedDict((name, value.detach().cpu()) for name, value in state.items())
    noted = {name: metadata.get("config", {}).get(name) for name in NOTED}
    weights._metadata = {"": {name: list(one) if isinstance(one, tuple) else one for name, one in noted.items()}}
    with atomic_write(path) as file:
        _write_tensors(file, weights)
        file.flush()
        save_json(metadata_path(path), {**metadata, "weights": fingerprint(file.name)})
        if config:
            save_settings(config_path(path), config)


def noted_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """Read what `save_state` wrote with the weights of what shapes do not show; empty in weights of others.

    InputError for a note that it would not have written: to pass it over would make another model of the weights.
    """
    metadata = getattr(state, "_metadata", None)
    own = dict.get(metadata, "") if isinstance(metadata, dict) else None
    found = {name: dict.get(own, name) for name in NOTED} if isinstance(own, dict) else {}
    for name, value in found.items():
        if value is not None and not _is_setting(value):
            raise InputError(f"weights note {name} as {shown(value)}, which no model has. Write or fetch them again.")
    return {name: value for name, value in found.items() if value is not None}


def _is_setting(value: Any) -> bool:
    """Whether a value is a short text, a whole number, a bool, or a short list of whole numbers."""
    if type(value) is list:
        return len(value) <= MOST_LISTED and all(type(one) is int and _is_setting(one) for one in value)
    return (
        type(value) is bool or (type(value) is int and abs(value) < 2**31) or (type(value) is str and len(value) < 200)
    )


def agreed_config(state: dict[str, Tensor], metadata: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """What a checkpoint is that shapes do not show, as its weights note it or the JSON beside them does.

    What neither says is as in `UNSAID`. InputError if they disagree.
    """
    noted, beside = noted_config(state), metadata.get("config", {})
    if not isinstance(beside, dict):
        raise InputError(f'{path}: "config" in the JSON beside it is {shown(beside)}. Restore it, or remove it.')
    for name, value in noted.items():
        if beside.get(name) is not None and (beside[name] != value or type(beside[name]) is not type(value)):
            raise InputError(
                f"{path}: {name} is {shown(value)} by the weights, {shown(beside[name])} by the JSON beside it. "
                "Restore it, or remove it."
            )
    said = {**UNSAID, **{name: beside[name] for name in NOTED if beside.get(name) is not None}, **noted}
    if type(said["attention"]) is not str or said["attention"] not in MASKS:
        raise InputError(
            f"{path} was trained with --attention {shown(said['attention'])}, and this program has only "
            f"{', '.join(MASKS)}. Add that mask to utils/masks.py, or use another checkpoint."
        )
    return said


def save_tensors(path: str | Path, value: dict[str, Any]) -> None:
    """Write a dict with torch.save, atomically and tensor by tensor, so that memory holds no second copy of it."""
    with atomic_write(path) as file:
        _write_tensors(file, value)


def _write_tensors(file: IO[bytes], value: dict[str, Any]) -> None:
    try:
        torch.save(value, file)
    except RuntimeError as error:  # torch raises its own error in place of the disk's, which is its context
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def find_checkpoints(patterns: list[str]) -> list[Path]:
    """Find the checkpoints that files, folders and patterns name, in natural order; zip parts count once.

    InputError if something typed matches nothing.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = [path] if kind_of(path) else _checkpoints_in(path, "*")
        elif any(sign in pattern for sign in "*?["):
            matches = _checkpoints_in(path.parent, path.name)
        else:
            matches = [path.with_name(path.name.split(PART)[0])]
        if not matches:
            raise InputError(f"--ckpt_path {pattern} matches no checkpoint (*.pt). Pre-train first, or name another.")
        found += matches
    return list(dict.fromkeys(found))


def _checkpoints_in(folder: Path, pattern: str) -> list[Path]:
    whole = {path.with_name(path.name.split(PART)[0]) for path in folder.glob(pattern) if path.is_file()}
    return sorted((path for path in whole if path.suffix == ".pt"), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which step_5000 comes before step_10000."""
    pieces = "".join(c if c.isdigit() else f" {c} " for c in path.name).split()
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
