"""Fetch the published weights and data, or raw reviews to make data of your own.

    python data_processing/data_download.py --release weights test
    python data_processing/data_download.py --release all
    python data_processing/data_download.py --amazon Baby_Products Video_Games --output data/raw

Weights come from the Hub model hkuds/RecGPT_model into ./ckpt, data from the Hub dataset hkuds/RecGPT_dataset into
./data; reviews and metadata of Amazon Reviews 2023 (Hub dataset McAuley-Lab/Amazon-Reviews-2023) into OUTPUT, where
data_process_1.py reads them. A file that is already there is not fetched again. A mirror may be named in HF_ENDPOINT.
The embeddings of pre_train come as 51.5 GB of rar parts, which are unpacked with unrar or bsdtar.
"""

import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: let the repository root be found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from utils.cli import parser, run
from utils.errors import InputError

MODEL = "hkuds/RecGPT_model"
WEIGHTS = "recgpt_layer_3_weight.pt"
DATA = "hkuds/RecGPT_dataset"
DATA_FOLDERS = ("pre_train", "eval", "test")
AMAZON = "McAuley-Lab/Amazon-Reviews-2023"
AMAZON_FILES = ("raw/review_categories/{}.jsonl", "raw/meta_categories/meta_{}.jsonl")
RAR_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)\.rar")
BLOCK = 1 << 24  # bytes


def main() -> None:
    """Parse, fetch, unpack."""
    flags = parser(__doc__)
    choices = ("weights", *DATA_FOLDERS, "all")
    flags.add_argument("--release", nargs="+", choices=choices, default=[], help="parts of the release")
    flags.add_argument("--amazon", nargs="+", metavar="CATEGORY", default=[], help="such as Baby_Products")
    flags.add_argument("--output", default="./data/raw", metavar="DIR", help="for --amazon")
    flags.add_argument("--ckpt_dir", default="./ckpt", metavar="DIR", help="for the weights of --release")
    flags.add_argument("--data_dir", default="./data", metavar="DIR", help="for the data of --release")
    args = flags.parse_args()
    if not args.release and not args.amazon:
        raise InputError("Nothing to fetch: give --release PART or --amazon CATEGORY.")

    parts = {"weights", *DATA_FOLDERS} if "all" in args.release else set(args.release)
    if "weights" in parts:
        print(fetch_file(MODEL, "model", WEIGHTS, args.ckpt_dir))
    for folder in DATA_FOLDERS:
        if folder in parts:
            fetch_folder(folder, args.data_dir)
            unpack_parts(Path(args.data_dir) / folder)
            print(Path(args.data_dir) / folder)
    for category in args.amazon:
        for pattern in AMAZON_FILES:
            print(fetch_file(AMAZON, "dataset", pattern.format(category), args.output))


def fetch_file(repository: str, kind: str, name: str, directory: str | Path) -> str:
    """Fetch one file of a Hub repository of that kind (model or dataset); its path under `directory`.

    Raises:
        InputError: it is not there, or the Hub is out of reach.
    """
    import huggingface_hub

    return _from_hub(
        huggingface_hub.hf_hub_download, f"{repository}/{name}",
        repo_id=repository, repo_type=kind, filename=name, local_dir=directory,
    )  # fmt: skip


def fetch_folder(folder: str, directory: str | Path) -> str:
    """Fetch one folder of the release's data set to `directory`/`folder`.

    Raises:
        InputError: the Hub is out of reach.
    """
    import huggingface_hub

    return _from_hub(
        huggingface_hub.snapshot_download, f"{DATA}/{folder}",
        repo_id=DATA, repo_type="dataset", allow_patterns=[f"{folder}/*"], local_dir=directory,
    )  # fmt: skip


def _from_hub(fetch: Callable[..., str], what: str, **where: Any) -> str:
    """Call a function of huggingface_hub; all its failures, network and missing files alike, are OSErrors."""
    try:
        return fetch(**where)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{what} cannot be fetched ({reason}). Check the name, the network and HF_HUB_OFFLINE, name a mirror in "
            "HF_ENDPOINT, or fetch it on another machine and copy it; what is already here is kept."
        ) from error


def unpack_parts(directory: Path) -> None:
    """Unpack the NAME.tar.gz….part01.rar, part02, … of a folder to NAME.npy there, unless that is already there.

    Raises:
        InputError: a part is missing or damaged, or neither unrar nor bsdtar is installed.
    """
    parts = {
        int(found["number"]): path for path in sorted(directory.iterdir()) if (found := RAR_PART.fullmatch(path.name))
    }
    if not parts:
        return
    target = directory / (parts[min(parts)].name.split(".")[0] + ".npy")
    if target.is_file():
        return
    missing = sorted(set(range(1, max(parts) + 1)) - set(parts))
    if missing:
        raise InputError(
            f"{directory}: rar parts {', '.join(map(str, missing))} of {max(parts)} are missing. "
            "Run the same command again to fetch them."
        )
    with tempfile.TemporaryDirectory(prefix=".unpack.", dir=directory) as scratch:
        unpack_rar([parts[number] for number in sorted(parts)], Path(scratch))
        unpack_tar(Path(scratch))
        found = next(Path(scratch).rglob(target.name), None)
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


def unpack_tar(scratch: Path) -> None:
    """Unpack the .tar.gz (whatever follows that in its name) that the rar parts held, and remove it."""
    for archive in list(scratch.rglob("*.tar.gz*")):
        try:
            with gzip.open(archive) as stream:
                with tarfile.open(fileobj=stream, mode="r|") as members:
                    for member in filter(tarfile.TarInfo.isfile, members):
                        # By its last name, so that no path in the archive leads out of the folder.
                        with (scratch / Path(member.name).name).open("wb") as file:
                            shutil.copyfileobj(members.extractfile(member), file, BLOCK)
                while stream.read(BLOCK):  # to the end, where the checksum is: bsdtar lets a damaged part pass
                    pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{archive.name}: not a whole archive ({error}). Fetch the rar parts again.") from error
        archive.unlink()


if __name__ == "__main__":
    run(main)
