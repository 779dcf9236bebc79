"""Directories of weights, on disk and on the Hugging Face Hub: JSON and safetensors, which can hold no code.

    DIR/config.json, model.safetensors                     sizes and origin of a model; its weights
    DIR/README.md                                          the model card (utils/model_card.py)
    DIR/tokenizer/config.json, tokenizer.safetensors       the tokenizer whose codes it reads

A bundle has the same two folders, side by side. utils/checkpoint.py reads such a directory wherever it reads a `.pt`.
"""

import contextlib
import json
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import DiskError, InputError, reason, shown
from utils.files import fingerprint, read_json, save_json, staged_directory


class Kind(NamedTuple):
    """What a directory of weights is of."""

    file: str  # the weights
    name: str  # "model" in config.json
    needed: tuple[str, ...]  # in config.json, too


MODEL = Kind("model.safetensors", "RecGPT", ("heads", "predicts"))  # which the shapes of weights do not show
TOKENIZER = Kind("tokenizer.safetensors", "RecGPT tokenizer", ("embedding_width", "whitens"))
CONFIG, CARD, TOKENIZER_FOLDER = "config.json", "README.md", "tokenizer"
WEIGHTS = (CONFIG, MODEL.file, TOKENIZER.file, f"{TOKENIZER_FOLDER}/{CONFIG}", f"{TOKENIZER_FOLDER}/{TOKENIZER.file}")
NOT_SIZES = ("model", "origin", "weights")  # of what is in config.json
# What config.json keeps of the JSON beside a checkpoint: what it reads, and which targets it has seen, by hashes.
ORIGIN = ("encoder", "tokenizer", "held_out", "targets_of", "whole_lists_of", "refit_of")
CHECKED = 1 << 18  # numbers of weights that are looked at together
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
REMEDY = "Write or fetch it again."


# On disk


def kind_of(folder: str | Path) -> Kind | None:
    """What the weights in a directory are of; None where it has none."""
    return next((kind for kind in (MODEL, TOKENIZER) if (Path(folder) / kind.file).is_file()), None)


def save_folder(folder: Path, kind: Kind, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write weights and config.json, with the fingerprint of the weights, into a folder, which is made if need be.

    Raises:
        InputError: a weight is not finite.
        DiskError: no space.
    """
    check_finite_weights(state, "what is to be written")
    path = folder / kind.file
    try:
        folder.mkdir(exist_ok=True)
        # As copies, because safetensors wants tensors that share no memory.
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        save_file(copies, path, {CONFIG: json.dumps({name: config[name] for name in config if name not in NOT_SIZES})})
    except Exception as error:  # of safetensors or of the disk
        raise DiskError(f"{path} could not be written ({reason(error)}). Free some space, and try again.") from error
    save_json(folder / CONFIG, {"model": kind.name, **config, "weights": fingerprint(path)})


def load_folder(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a directory by name, on the CPU, and in `_metadata` what is noted with them.

    Raises:
        InputError: none there, a damaged file, another than config.json was written with, or a weight that is no finite
            number.
    """
    kind = kind_of(folder)
    if kind is None:
        raise InputError(
            f"{folder} is a directory without {MODEL.file} or {TOKENIZER.file}. Give one that has been written with "
            "export.py --pretrained, or a .pt file (eval.py tells which is best)."
        )
    path, known = folder / kind.file, _read_config(folder, kind).get("weights")  # bundles of earlier versions have none
    if known is not None and known != fingerprint(path):
        raise InputError(f"{path} is not the file that {folder / CONFIG} was written with: cut or changed. {REMEDY}")
    try:
        state = OrderedDict(load_file(path))
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {}).get(CONFIG, "{}"))  # earlier versions noted nothing
        state._metadata = {"": noted}
    except Exception as error:  # safetensors raises several types for damaged files
        raise InputError(f"{path} is no whole file of weights ({reason(error)}). {REMEDY}") from error
    check_finite_weights(state, path)
    return state


def read_folder(folder: Path) -> dict[str, Any]:
    """Read what is noted of the weights in a directory, as beside a checkpoint: sizes under "config", and origin.

    Raises:
        InputError: config.json is missing or damaged, or not of such weights.
    """
    config = _read_config(folder, kind_of(folder) or MODEL)
    origin = config.get("origin", {})
    if not isinstance(origin, dict):
        raise InputError(f'{folder / CONFIG}: "origin" is {shown(origin)}, expected an object. {REMEDY}')
    sizes = {name: value for name, value in config.items() if name not in NOT_SIZES}
    return {**known_origin(origin), "config": sizes}


def known_origin(metadata: dict[str, Any]) -> dict[str, Any]:
    """Of the JSON beside a checkpoint, what config.json keeps."""
    return {name: metadata[name] for name in ORIGIN if name in metadata}


def _read_config(folder: Path, kind: Kind) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if config.get("model") != kind.name:
        found = shown(config.get("model"))
        raise InputError(f'{folder / CONFIG}: "model" is {found}, expected "{kind.name}". {REMEDY}')
    missing = [name for name in kind.needed if config.get(name) is None]
    if missing:
        raise InputError(f'{folder / CONFIG} does not say "{missing[0]}", which the weights do not show. {REMEDY}')
    return config


def check_finite_weights(state: dict[str, Tensor], source: str | Path) -> None:
    """InputError if a weight is not finite as float32, which models have."""
    for name, value in state.items():
        if not is_finite(value):
            raise InputError(f"{source}: {shown(name)} holds NaN or infinity. Use an earlier checkpoint.")


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity as float32; a part at a time, which takes little memory."""
    return all(part.float().isfinite().all() for part in value.flatten().split(CHECKED))


@contextlib.contextmanager
def pretrained_directory(directory: str | Path) -> Iterator[Path]:
    """Yield a hidden folder for the files of a directory of weights, which gets them when all are whole.

    Those of an earlier one are replaced or removed, so that no weights stand beside another's tokenizer.

    Raises:
        InputError: the directory holds files of others.
        DiskError: no space; what was there stays.
    """
    directory = Path(directory)
    earlier = read_json(directory / CONFIG, missing_ok=True).get("model") in (MODEL.name, TOKENIZER.name)
    own = {CARD, TOKENIZER_FOLDER, *WEIGHTS} if earlier else ()
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    others = [name for name in found if name not in own and not name.startswith(".")]
    if others:
        raise InputError(f"{directory} holds {others[0]}, which is of something else. Name a new directory.")
    with staged_directory(directory, (CARD, *WEIGHTS), first=".json") as staging:
        yield staging


# On the Hub


def fetched(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """A directory of weights: `name` if it is one, or else where the model OWNER/NAME of the Hub is fetched to.

    Nothing is fetched but the weights and their config.json; what was fetched earlier is taken from the Hub's cache.

    Raises:
        InputError: neither a directory nor a model that the Hub has, the Hub is out of reach, or it has no weights.
    """
    if Path(name).is_dir():
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise InputError(f"{name} is neither a directory nor the name of a model of the Hub, OWNER/NAME.")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(name), revision=revision, token=token, allow_patterns=list(WEIGHTS)))
    except Exception as error:  # of huggingface_hub, of the network library of its version, or of the disk
        raise InputError(
            f"{name} is no directory, and cannot be fetched from the Hub either ({_said(error)}). Check the name, the "
            "network and HF_HUB_OFFLINE; a private model needs a token (HF_TOKEN, or hf auth login)."
        ) from error
    if not folder.is_dir() or kind_of(folder) is None and kind_of(folder / TOKENIZER_FOLDER) is None:
        raise InputError(f"{name} of the Hub has neither {MODEL.file} nor {TOKENIZER.file}. Check the name.")
    return folder


def upload(
    name: str,
    write: Callable[[Path], None],
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Send what `write` writes into a folder to the model OWNER/NAME of the Hub, as one commit; returns its address.

    The model is made where there is none, and so is the branch `revision`. Other files than those of a directory of
    weights stay as they are there.

    Raises:
        InputError: another form of name, no token, the Hub is out of reach or refuses, or `private` files would go
            where everyone can read them.
    """
    from huggingface_hub import HfApi, constants, get_token

    if not HUB_NAME.fullmatch(name):
        raise InputError(f"{name} is not the name of a model of the Hub, OWNER/NAME.")
    if constants.is_offline_mode():
        raise InputError(f"{name} cannot be sent to the Hub while HF_HUB_OFFLINE is set. Unset it.")
    if not (token or get_token()):
        raise InputError(f"{name} cannot be sent to the Hub without a token. Set HF_TOKEN, or type hf auth login.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        try:
            api.create_repo(name, private=private, exist_ok=True)
            public = private and not api.model_info(name).private  # as an earlier one may be
            if not public:
                if revision:
                    api.create_branch(name, branch=revision, exist_ok=True)
                options = {"commit_message": message, "revision": revision, "delete_patterns": list(WEIGHTS)}
                commit = api.upload_folder(repo_id=name, folder_path=folder, **options)
        except Exception as error:  # of huggingface_hub, or of the network library of its version
            raise InputError(
                f"{name} cannot be sent to the Hub ({_said(error)}). Check the name, the network, and that the token "
                "may write."
            ) from error
    if public:
        raise InputError(f"{name} is there already, and everyone can read it: nothing was sent. Give private=False.")
    return commit.commit_url


def _said(error: Exception) -> str:
    """What a library says of an error, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
