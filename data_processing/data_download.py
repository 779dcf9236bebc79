"""Fetch the published weights and data, or raw reviews to make data of your own.

    python data_processing/data_download.py --release weights test
    python data_processing/data_download.py --release all
    python data_processing/data_download.py --amazon Baby_Products Video_Games --output data/raw

Weights come from the Hub model hkuds/RecGPT_model into ./ckpt, data from the Hub dataset hkuds/RecGPT_dataset into
./data; reviews and metadata of Amazon Reviews 2023 (Hub dataset McAuley-Lab/Amazon-Reviews-2023) into OUTPUT, where
data_process_1.py reads them. A mirror may be named in HF_ENDPOINT.

Run the same command again after any interruption: a transfer goes on where it stopped, and a file that is there in the
size that the Hub lists is not fetched again. One of another size is replaced, once the new one is whole. What arrives
is held against the Hub's size and checksum before it gets its name.

The embeddings of pre_train come as 51.5 GB of rar parts, which are unpacked with unrar or bsdtar; that takes another
147 GB while it runs, and leaves 95 GB. Afterwards the parts may be deleted, and are not fetched again.
"""

import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from tqdm import tqdm

from utils.cli import parser, run
from utils.errors import InputError, reason
from utils.files import MOST_UNPACKED, check_writable, limited_memory, load_array

MODEL = "hkuds/RecGPT_model"
WEIGHTS = "recgpt_layer_3_weight.pt"
DATA = "hkuds/RecGPT_dataset"
DATA_FOLDERS = ("pre_train", "eval", "test")
AMAZON = "McAuley-Lab/Amazon-Reviews-2023"
AMAZON_FILES = ("raw/review_categories/{}.jsonl", "raw/meta_categories/meta_{}.jsonl")
RAW = "./data/raw"
HUB_NAME = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<path>.+)")
RAR_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)\.rar")
BLOCK = 1 << 24  # bytes


class HubFile(NamedTuple):
    """A file of a Hub repository, as the Hub lists it."""

    repository: str
    kind: str  # model or dataset
    revision: str | None  # None is the main branch
    path: str
    size: int  # bytes
    version: str  # another one for every content
    checksum: str | None  # SHA-256; the Hub has none for small files

    def partial(self, directory: Path) -> Path:
        """Where it is kept while it arrives: pieces of two versions never come together."""
        path = directory / self.path
        return path.with_name(f".{path.name}.{self.version[:12]}.partial")


def main() -> None:
    """Parse, look up everything, fetch, unpack."""
    flags = parser(__doc__)
    choices = ("weights", *DATA_FOLDERS, "all")
    flags.add_argument("--release", nargs="+", choices=choices, default=[], help="parts of the release")
    flags.add_argument("--amazon", nargs="+", metavar="CATEGORY", default=[], help="such as Baby_Products")
    flags.add_argument("--output", default=RAW, metavar="DIR", help="for --amazon")
    flags.add_argument("--ckpt_dir", default="./ckpt", metavar="DIR", help="for the weights of --release")
    flags.add_argument("--data_dir", default="./data", metavar="DIR", help="for the data of --release")
    args = flags.parse_args()
    if not args.release and not args.amazon:
        raise InputError("Nothing to fetch: give --release PART or --amazon CATEGORY.")

    parts = {"weights", *DATA_FOLDERS} if "all" in args.release else set(args.release)
    folders = [folder for folder in DATA_FOLDERS if folder in parts]
    # Looked up before the first byte is fetched: a mistyped category shows at once, not after hours.
    work = [(list_weights(), args.ckpt_dir)] if "weights" in parts else []
    work += [(list_folder(DATA, "dataset", folder), args.data_dir) for folder in folders]
    work += [
        ([find_file(AMAZON, pattern.format(category)) for pattern in AMAZON_FILES], args.output)
        for category in args.amazon
    ]
    for files, directory in work:
        fetch(files, directory)
    for folder in folders:
        unpack_parts(Path(args.data_dir) / folder)


def local_file(name: str, directory: str | Path) -> Path:
    """The path of a file that may be named hf://datasets/OWNER/REPO/PATH or hf://datasets/OWNER/REPO@REVISION/PATH.

    Such a file is first fetched to `directory`/OWNER/REPO/PATH (…/REPO@REVISION/PATH), unless it is there in the size
    that the Hub lists. Any other name is a local path, returned as it is.

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
    # A folder for each repository and revision: files of one name and size must not be taken for each other.
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
    """Look up one file of a Hub dataset.

    Raises:
        InputError: it is not there, or the Hub is out of reach.
    """
    from huggingface_hub import HfApi

    entries = _ask_hub(
        f"{repository}/{path}", HfApi().get_paths_info, repository, path, repo_type="dataset", revision=revision
    )
    return _listed(entries, repository, "dataset", path, revision)[0]


def list_folder(repository: str, kind: str, folder: str) -> list[HubFile]:
    """Look up all files of a folder of a Hub repository, and of the folders in it.

    Raises:
        InputError: it is not there, is empty, or the Hub is out of reach.
    """
    from huggingface_hub import HfApi

    def entries() -> list[Any]:
        return list(HfApi().list_repo_tree(repository, folder, recursive=True, repo_type=kind))

    return _listed(_ask_hub(f"{repository}/{folder}", entries), repository, kind, folder)


def list_weights() -> list[HubFile]:
    """Look up the release's weights: the whole file where there is one, otherwise its zip parts.

    Raises:
        InputError: neither is there, or the Hub is out of reach.
    """
    files = list_folder(MODEL, "model", "")
    whole = [file for file in files if file.path == WEIGHTS]
    weights = whole or [file for file in files if file.path.startswith(f"{WEIGHTS}.")]
    if not weights:
        raise InputError(
            f"{MODEL} has no {WEIGHTS}, whole or in parts, but {', '.join(file.path for file in files)}. "
            "Fetch the weights by hand, and give them as --ckpt_path."
        )
    return weights


def _listed(
    entries: Iterable[Any], repository: str, kind: str, path: str, revision: str | None = None
) -> list[HubFile]:
    """The files among what huggingface_hub lists; there must be one, and none may lead out of the folder."""
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
    """Fetch those files that are not in place yet; the paths of all of them, under `directory`.

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
    """Whether a file is there in the right size, or no longer needed; says so when the size is wrong."""
    path = directory / file.path
    if RAR_PART.fullmatch(path.name) and _unpacked(path).is_file():
        return True
    if path.is_file() and path.stat().st_size != file.size:
        print(f"{path} has {path.stat().st_size} bytes, the Hub lists {file.size}: it is fetched again")
        return False
    return path.is_file()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_file(file: HubFile, directory: Path) -> None:
    """Fetch one file, going on where an earlier transfer broke off, and give it its name when it is whole.

    hf_hub_download throws away what a broken transfer leaves (huggingface_hub 2.4.0); its http_get can go on.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path, partial = directory / file.path, file.partial(directory)
    check_writable(path)
    if partial.is_symlink() or _size(partial) > file.size:  # not ours; two runs at once wrote to it
        partial.unlink()
    url = hf_hub_url(file.repository, file.path, repo_type=file.kind, revision=file.revision)
    with partial.open("ab") as stream:
        if stream.tell() < file.size:
            _ask_hub(
                f"{file.repository}/{file.path}", http_get, url, stream,
                resume_size=stream.tell(), headers=build_hf_headers(), displayed_filename=file.path,
            )  # fmt: skip
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
    """What tells the file that arrived from the one listed; None if it is the one."""
    if _size(arrived) != file.size:
        return f"{_size(arrived)} bytes arrived, the Hub lists {file.size}"
    if file.checksum:
        with arrived.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.checksum:
            return f"what arrived has the SHA-256 {found}, the Hub lists {file.checksum}"
    return None


def _ask_hub(what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of huggingface_hub; `what` is named when it fails."""
    try:
        return call(*arguments, **options)
    except Exception as error:  # of huggingface_hub, of the network library of its version, or of the disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{what} cannot be fetched ({reason}). Check the name, the network and HF_HUB_OFFLINE, name a mirror in "
            "HF_ENDPOINT, or fetch it on another machine and copy it; what is here is kept, and the same command "
            "goes on from there."
        ) from error


def check_space(directory: str | Path, needed: int, purpose: str) -> None:
    """Raise InputError where the disk of a directory has fewer than `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InputError(
            f"{directory} has {free / 1e9:.1f} GB free, {purpose} needs {needed / 1e9:.1f} GB. Free some space, or "
            "name another place."
        )


def _unpacked(part: Path) -> Path:
    """The file that a rar part is unpacked to, NAME.npy for NAME.tar.gz….part01.rar."""
    return part.with_name(part.name.split(".")[0] + ".npy")


def unpack_parts(directory: Path) -> None:
    """Unpack the NAME.tar.gz….part01.rar, part02, … of a folder to NAME.npy there, unless that is already there.

    Raises:
        InputError: a part is missing or damaged, neither unrar nor bsdtar is installed, too little space, or what was
            unpacked earlier is not whole.
    """
    parts = {
        int(found["number"]): path for path in sorted(directory.iterdir()) if (found := RAR_PART.fullmatch(path.name))
    }
    if not parts:
        return
    target = _unpacked(parts[min(parts)])
    if target.is_file():
        load_array(target, "Delete it and run the same command again.")  # raises if it is not whole
        return
    missing = sorted(set(range(1, max(parts) + 1)) - set(parts))
    if missing:
        raise InputError(
            f"{directory}: rar parts {', '.join(map(str, missing))} of {max(parts)} are missing. "
            "Run the same command again to fetch them."
        )
    # The archive and, at the same time, the array in it, which is no smaller.
    check_space(directory, 2 * sum(path.stat().st_size for path in parts.values()), "unpacking the rar parts")
    with tempfile.TemporaryDirectory(prefix=".unpack.", dir=directory) as scratch:
        unpack_rar([parts[number] for number in sorted(parts)], Path(scratch))
        unpack_tar(Path(scratch))
        found = next(filter(_is_own, Path(scratch).rglob(target.name)), None)
        if found is None:
            raise InputError(f"{directory}: the rar parts hold no {target.name}; expected the release's embeddings.")
        found.replace(target)
    print(f"{target} is unpacked: the rar parts beside it may be deleted")


def unpack_rar(parts: list[Path], scratch: Path) -> None:
    """Unpack a rar archive in several parts to `scratch`, with unrar or bsdtar, whichever is installed."""
    unrar, bsdtar = shutil.which("unrar"), shutil.which("bsdtar")
    if unrar:  # finds the other parts by their names
        command, piped = [unrar, "x", "-idq", str(parts[0].resolve()), f"{scratch}/"], []
    elif bsdtar:  # takes the parts joined
        command, piped = [bsdtar, "-x", "-f", "-", "-C", str(scratch)], parts
    else:
        raise InputError(
            f"{parts[0]} and the parts beside it are rar archives: unpacking them needs unrar or bsdtar, neither is "
            "installed. Install one (apt install libarchive-tools) and run again; what was fetched is kept."
        )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            for part in tqdm(piped, desc="unpacking", unit=" parts"):
                with part.open("rb") as file:
                    shutil.copyfileobj(file, process.stdin, BLOCK)
        except BrokenPipeError:
            pass  # it gave up; why, it says below
        _, complaint = process.communicate()
    if process.returncode:
        reason = (complaint.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{parts[0]}: unpacking failed ({reason}). Delete the part that is damaged and run the same command again."
        )


def _is_own(path: Path) -> bool:
    """Whether it is a file by itself: a link in an archive may lead anywhere, and a pipe never ends."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def unpack_tar(scratch: Path) -> None:
    """Unpack the .tar.gz (whatever follows that in its name) that the rar parts held, and remove it.

    Its files go into a new folder of `scratch`, so that none is written over or through what else was unpacked there.

    Raises:
        InputError: a damaged archive, one that unpacks to too much, or one with two files of one name.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for archive in filter(_is_own, list(scratch.rglob("*.tar.gz*"))):
        size = archive.stat().st_size
        try:
            with limited_memory(0), gzip.open(archive) as stream:  # in blocks; a header may claim to be of any size
                with tarfile.open(fileobj=stream, mode="r|") as members:
                    for member in filter(tarfile.TarInfo.isfile, members):
                        if member.size > MOST_UNPACKED * size:
                            raise InputError(
                                f"{archive.name}: its {size} bytes unpack to {member.size}. Fetch the rar parts again."
                            )
                        check_space(scratch, member.size, f"unpacking {member.name}")
                        # By its last name, so that no path in the archive leads out of the folder.
                        with (folder / Path(member.name).name).open("xb") as file:
                            shutil.copyfileobj(members.extractfile(member), file, BLOCK)
                while stream.read(BLOCK):  # to the end, where the checksum is: bsdtar lets a damaged part pass
                    pass
        except FileExistsError as error:
            raise InputError(f"{archive.name} holds two files called {Path(error.filename).name}.") from error
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, MemoryError) as error:
            raise InputError(
                f"{archive.name}: not a whole archive ({reason(error)}). Fetch the rar parts again."
            ) from error
        archive.unlink()


if __name__ == "__main__":
    run(main)
