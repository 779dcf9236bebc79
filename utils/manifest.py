"""What belongs together in a directory: JSON files that list others with a hash of each, and are in place first."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import content, read_json, save_json, staged_directory

MANIFEST = "dataset.json"  # of a data set directory, of data/pre_train and of data/eval


@contextlib.contextmanager
def staged_set(output: str | Path, names: Sequence[str], **notes: Any) -> Iterator[Path]:
    """A `staged_directory` that writes OUTPUT/dataset.json too: hashes of the files of these names, and `notes`.

    A name without a file has null for a hash. JSON moves first, so that `check_whole` refuses the directory until the
    last file has moved or is removed.
    """
    with staged_directory(output, names, first=".json") as staging:
        yield staging
        files = {name: content(staging / name) if (staging / name).is_file() else None for name in names}
        save_json(staging / MANIFEST, {"files": files, **notes})


def check_whole(note: Path) -> None:
    """InputError where a file in the directory of a JSON file is not the one that it lists under "files".

    A name such as ".npy" is that of the JSON file with another ending: both may be renamed together. The release has
    no such JSON: then there is nothing to compare.
    """
    files = read_json(note).get("files", {}) if note.is_file() else {}
    if not isinstance(files, dict):
        raise InputError(f'{note}: "files" is {str(files)[:60]}, expected names with hashes. Delete or restore it.')
    for name, known in files.items():
        if not re.fullmatch(r"\.?\w[\w.-]{0,99}", name):
            raise InputError(f"{note} lists {name[:60]!r}, which is no file beside it. Delete or restore it.")
        path = note.with_suffix(name) if name.startswith(".") else note.parent / name
        if (content(path) if path.is_file() else None) != known:
            raise InputError(
                f"{path} is not what {note} lists: a run was stopped, or a file was changed by hand. Run the same "
                f'command again; if the change is meant, remove "files" from {note}.'
            )
