"""Model and tokenizer of a bundle: weights as safetensors, which hold nothing but tensors, and sizes as JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ae_trainer import WHITENS, AutoEncoder
from decoder import check_width
from model import RecGPT, read_config
from utils.checkpoint import fill_module
from utils.errors import DiskError, InputError, reason, shown
from utils.files import read_json, save_json

CONFIG = "config.json"
REMEDY = "Make the bundle again (python -m serving.bundle)."


def save_model(folder: Path, model: RecGPT) -> None:
    """Write a model into a folder that exists: config.json and model.safetensors."""
    save_json(folder / CONFIG, {"model": "RecGPT", **asdict(model.config)})
    _save(model.state_dict(), folder / "model.safetensors")


def load_model_folder(folder: Path, device: torch.device | str = "cpu") -> RecGPT:
    """Read a model, in evaluation mode; InputError for missing, damaged or other files."""
    state = _load(folder / "model.safetensors")
    model = RecGPT(read_config(state, {"config": read_json(folder / CONFIG)}, folder))  # sizes are those of the weights
    fill_module(model, state, folder)
    return model.to(device).eval()


def save_tokenizer(folder: Path, tokenizer: AutoEncoder) -> None:
    """Write a tokenizer into a folder that exists: config.json and tokenizer.safetensors."""
    sizes = {"embedding_width": tokenizer.embedding_width, "whitens": tokenizer.whitens}
    save_json(folder / CONFIG, {"model": "RecGPT tokenizer", **sizes})
    _save(tokenizer.state_dict(), folder / "tokenizer.safetensors")


def load_tokenizer_folder(folder: Path) -> AutoEncoder:
    """Read a tokenizer, in evaluation mode; InputError for missing, damaged or other files."""
    path = folder / CONFIG
    width, state = read_json(path).get("embedding_width"), _load(folder / "tokenizer.safetensors")
    if type(width) is not int or width < 1:
        raise InputError(f'{path}: "embedding_width" is {shown(width)}, expected a whole number. {REMEDY}')
    check_width(width, path)
    if sum(value.numel() for value in state.values()) < width**2:  # before more is made than memory may hold
        raise InputError(f"{path}: the weights beside it are too few for embeddings {width} wide. {REMEDY}")
    tokenizer = AutoEncoder(width, WHITENS in state)
    fill_module(tokenizer, state, folder)
    return tokenizer.eval()


def _save(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors, as copies that share no memory, as safetensors wants them; DiskError for want of space."""
    try:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, path)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{path} could not be written ({reason(error)}). Free some space, and try again.") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}). {REMEDY}") from error
