"""Downloads from the Hugging Face Hub: they resume where a transfer broke off, and are checked by size and checksum."""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import InputError
from utils.files import check_writable

RAW = "./data/raw"
HUB_NAME = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<path>.+)")
RAR_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)\.rar")


class HubFile(NamedTuple):
    """A file of a Hub repository, as the Hub lists it."""

    repository: str
    kind: str  # model or dataset
    revision: str | None  # None: the main branch
    path: str
    size: int  # bytes
    version: str  # differs for every content
    checksum: str | None  # SHA-256; the Hub has none for small files

    def partial(self, directory: Path) -> Path:
        """Where the file is kept until it is whole; each version has a name of its own, so that none are mixed."""
        path = directory / self.path
        return path.with_name(f".{path.name}.{self.version[:12]}.partial")


def local_file(name: str, directory: str | Path) -> Path:
    """Return the path of a file; one named hf://datasets/OWNER/REPO/PATH or …/REPO@REVISION/PATH is fetched first.

    It is fetched to `directory`/OWNER/REPO/PATH or …/REPO@REVISION/PATH, unless it is there in the size that the Hub
    lists. Any other name is a local path and returned as it is.

    Raises:
        InputError: another form of hf:// name, no such file, or the Hub is out of reach.
    """
    if not name.startswith("hf://"):
        return Path(name)
    found = HUB_NAME.fullmatch(name)
    if not found or {"", ".", ".."} & set(name.removeprefix("hf://").split("/")):
        raise InputError(
            f"{name} is not a name of the form hf://datasets/OWNER/REPO/PATH or hf://datasets/OWNER/REPO@REVISION/PATH."
        )
    # Each repository and revision has a folder of its own, as their files may have equal names and sizes.
    at = f"@{found['revision']}" if found["revision"] else ""
    folder = Path(directory) / f"{found['repository']}{at}"
    try:
        file = find_file(found["repository"], found["path"], found["revision"])
    except InputError as error:
        if (folder / found["path"]).is_file():
            raise InputError(f"{error} Or name {folder / found['path']}, which was fetched earlier.") from error
        raise
    return fetch([file], folder)[0]


def find_file(repository: str, path: str, revision: str | None = None) -> HubFile:
    """Look up one file of a Hub dataset; raise InputError if it does not exist, or the Hub is out of reach."""
    from huggingface_hub import HfApi

    find = functools.partial(HfApi().get_paths_info, repository, path, repo_type="dataset", revision=revision)
    entries = _ask_hub(f"{repository}/{path}", find)
    return _listed(entries, repository, "dataset", path, revision)[0]


def list_folder(repository: str, kind: str, folder: str) -> list[HubFile]:
    """Look up all files under a folder of a Hub repository; raise InputError if none is found."""
    from huggingface_hub import HfApi

    walk = functools.partial(HfApi().list_repo_tree, repository, folder, recursive=True, repo_type=kind)
    entries = _ask_hub(f"{repository}/{folder}", lambda: list(walk()))
    return _listed(entries, repository, kind, folder)


def _listed(
    entries: Iterable[Any], repository: str, kind: str, path: str, revision: str | None = None
) -> list[HubFile]:
    """The files among the entries of huggingface_hub; InputError if there are none, or one leads out of its folder."""
    files = [
        HubFile(
            repository, kind, revision, entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None
        )
        for entry in entries
        if hasattr(entry, "size")  # folders have none
    ]
    if not files:
        raise InputError(
            f"{repository}/{path} is no file of the Hub{f' at {revision}' if revision else ''}. Check the name."
        )
    for file in files:
        if {"", ".", ".."} & set(file.path.split("/")):  # a mirror may list anything
            raise InputError(
                f"{repository} lists {file.path!r}, a path that leads out of its folder: nothing is fetched."
            )
    return files


def fetch(files: list[HubFile], directory: str | Path) -> list[Path]:
    """Fetch the files that are not in place yet; returns the paths of all of them under `directory`.

    Raises:
        InputError: the Hub is out of reach, a file that arrives is not the one listed, or too little space.
    """
    directory = Path(directory)
    wanted = [file for file in files if not _in_place(file, directory)]
    if wanted:
        check_writable(directory / wanted[0].path)
        missing = sum(file.size - _size(file.partial(directory)) for file in wanted)
        check_space(directory, missing, "what is to be fetched")
    for file in wanted:
        _fetch_file(file, directory)
    where = directory / os.path.commonpath([file.path for file in files])
    print(f"{where}: {len(wanted) or 'nothing'} fetched, {len(files) - len(wanted)} of {len(files)} already in place")
    return [directory / file.path for file in files]


def _in_place(file: HubFile, directory: Path) -> bool:
    """Whether a file need not be fetched: it has the right size, or is a rar part that was unpacked already."""
    path = directory / file.path
    if RAR_PART.fullmatch(path.name) and unpacked_path(path).is_file():
        return True
    if path.is_file() and path.stat().st_size != file.size:
        print(f"{path} has {path.stat().st_size} bytes, the Hub lists {file.size}: it is fetched again")
        return False
    return path.is_file()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_file(file: HubFile, directory: Path) -> None:
    """Fetch one file, resuming where an earlier transfer broke off, and give it its name when it is whole.

    hf_hub_download throws away what a broken transfer has left (huggingface_hub 2.4.0); http_get can resume.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path, partial = directory / file.path, file.partial(directory)
    check_writable(path)
    if partial.is_symlink() or _size(partial) > file.size:  # somebody else's, or written by two runs at once
        partial.unlink()
    url = hf_hub_url(file.repository, file.path, repo_type=file.kind, revision=file.revision)
    with partial.open("ab") as stream:
        if stream.tell() < file.size:
            options = {"resume_size": stream.tell(), "headers": build_hf_headers(), "displayed_filename": file.path}
            _ask_hub(f"{file.repository}/{file.path}", functools.partial(http_get, url, stream, **options))
        stream.flush()
        os.fsync(stream.fileno())
    problem = _difference(file, partial)
    if problem:
        partial.unlink()
        raise InputError(
            f"{path}: {problem}. Nothing of it was kept: run the same command again; if that does not help, name "
            "another mirror in HF_ENDPOINT."
        )
    partial.replace(path)


def _difference(file: HubFile, arrived: Path) -> str | None:
    """How the file that arrived differs from the one listed; None if it does not."""
    if _size(arrived) != file.size:
        return f"{_size(arrived)} bytes arrived, the Hub lists {file.size}"
    if file.checksum:
        with arrived.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.checksum:
            return f"what arrived has the SHA-256 {found}, the Hub lists {file.checksum}"
    return None


def _ask_hub(what: str, call: Callable[[], Any]) -> Any:
    """Call a function of huggingface_hub; where it fails, raise InputError that names `what` was to be fetched."""
    try:
        return call()
    except Exception as error:  # of huggingface_hub, of the network library of its version, or of the disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{what} cannot be fetched ({reason}). Check the name, the network and HF_HUB_OFFLINE, name a mirror in "
            "HF_ENDPOINT, or fetch it on another machine and copy it; what is here is kept, and the same command "
            "goes on from there."
        ) from error


def check_space(directory: str | Path, needed: int, purpose: str) -> None:
    """Raise InputError if the disk of a directory has fewer than `needed` bytes free; `purpose` is what needs them."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InputError(
            f"{directory} has {free / 1e9:.1f} GB free, {purpose} needs {needed / 1e9:.1f} GB. Free some space, or "
            "name another place."
        )


def unpacked_path(part: Path) -> Path:
    """The file that rar parts are unpacked to: NAME.npy for NAME.tar.gz….part01.rar."""
    return part.with_name(part.name.split(".")[0] + ".npy")
