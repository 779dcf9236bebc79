"""Fetch the published weights and data, or raw reviews to make data of your own.

    python data_processing/data_download.py --release weights test
    python data_processing/data_download.py --release all
    python data_processing/data_download.py --amazon Baby_Products Video_Games --output data/raw

Weights come from the Hub model hkuds/RecGPT_model into ./ckpt, data from the Hub dataset hkuds/RecGPT_dataset into
./data; reviews and metadata of Amazon Reviews 2023 (Hub dataset McAuley-Lab/Amazon-Reviews-2023) into OUTPUT, where
data_process_1.py reads them. A mirror may be named in HF_ENDPOINT.

Run the same command again after any interruption: a transfer resumes where it stopped, and a file that is there in the
size that the Hub lists is not fetched again. One of another size is replaced, once the new one is whole. What arrives
is compared with the Hub's size and checksum before it gets its name.

The embeddings of pre_train come as 51.5 GB of rar parts, which are unpacked with unrar or bsdtar; that takes another
147 GB while it runs, and leaves 95 GB. Afterwards the parts may be deleted, and are not fetched again.
"""

import gzip
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from tqdm import tqdm

from data_processing.parts.hub import RAR_PART, RAW, HubFile, check_space, fetch, find_file, list_folder, unpacked_path
from utils.cli import parser, run
from utils.errors import InputError, reason
from utils.files import MOST_UNPACKED, limited_memory, load_array

MODEL = "hkuds/RecGPT_model"
WEIGHTS = "recgpt_layer_3_weight.pt"
DATA = "hkuds/RecGPT_dataset"
DATA_FOLDERS = ("pre_train", "eval", "test")
AMAZON = "McAuley-Lab/Amazon-Reviews-2023"
AMAZON_FILES = ("raw/review_categories/{}.jsonl", "raw/meta_categories/meta_{}.jsonl")
BLOCK = 1 << 24  # bytes


def main() -> None:
    """Look up all files, fetch them, and unpack the embeddings of pre_train."""
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
    # Everything is looked up before the first byte is fetched: a mistyped category shows at once, not after hours.
    wanted = [(list_weights(), args.ckpt_dir)] if "weights" in parts else []
    wanted += [(list_folder(DATA, "dataset", folder), args.data_dir) for folder in folders]
    wanted += [
        ([find_file(AMAZON, pattern.format(category)) for pattern in AMAZON_FILES], args.output)
        for category in args.amazon
    ]
    for files, directory in wanted:
        fetch(files, directory)
    for folder in folders:
        unpack_parts(Path(args.data_dir) / folder)


def list_weights() -> list[HubFile]:
    """Look up the release's weights: the whole file, or its zip parts; raise InputError if there is neither."""
    files = list_folder(MODEL, "model", "")
    whole = [file for file in files if file.path == WEIGHTS]
    weights = whole or [file for file in files if file.path.startswith(f"{WEIGHTS}.")]
    if not weights:
        raise InputError(
            f"{MODEL} has no {WEIGHTS}, whole or in parts, but {', '.join(file.path for file in files)}. "
            "Fetch the weights by hand, and give them as --ckpt_path."
        )
    return weights


def unpack_parts(directory: Path) -> None:
    """Unpack the NAME.tar.gz….part01.rar, part02, … of a folder to NAME.npy, unless that file exists already.

    Raises:
        InputError: a part is missing or damaged, neither unrar nor bsdtar is installed, too little space, or what was
            unpacked earlier is not whole.
    """
    parts = {
        int(found["number"]): path for path in sorted(directory.iterdir()) if (found := RAR_PART.fullmatch(path.name))
    }
    if not parts:
        return
    target = unpacked_path(parts[min(parts)])
    if target.is_file():
        load_array(target, "Delete it and run the same command again.")  # raises if it is not whole
        return
    missing = sorted(set(range(1, max(parts) + 1)) - set(parts))
    if missing:
        raise InputError(
            f"{directory}: rar parts {', '.join(map(str, missing))} of {max(parts)} are missing. "
            "Run the same command again to fetch them."
        )
    # Space for the archive and, at the same time, for the array in it, which is no smaller.
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
    """Unpack a rar archive in several parts to a folder, with unrar or bsdtar, whichever is installed."""
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
            pass  # the program gave up; its exit code and message are read below
        _, message = process.communicate()
    if process.returncode:
        reason = (message.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{parts[0]}: unpacking failed ({reason}). Delete the part that is damaged and run the same command again."
        )


def _is_own(path: Path) -> bool:
    """Whether a path is a regular file without other names: links may lead anywhere, and pipes never end."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def unpack_tar(scratch: Path) -> None:
    """Unpack the .tar.gz that the rar parts held, whatever follows .tar.gz in its name, and remove it.

    Its files go into a new folder in `scratch`, so that none replaces, or is written through, what rar has unpacked.

    Raises:
        InputError: a damaged archive, one that unpacks to too much, or one with two files of the same name.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for archive in filter(_is_own, list(scratch.rglob("*.tar.gz*"))):
        size = archive.stat().st_size
        try:
            with limited_memory(0), gzip.open(archive) as stream:  # a header that asks for memory is refused
                with tarfile.open(fileobj=stream, mode="r|") as members:
                    for member in filter(tarfile.TarInfo.isfile, members):
                        if member.size > MOST_UNPACKED * size:
                            raise InputError(
                                f"{archive.name}: its {size} bytes unpack to {member.size}. Fetch the rar parts again."
                            )
                        check_space(scratch, member.size, f"unpacking {member.name}")
                        # Only the last part of the path counts, so that none leads out of the folder.
                        with (folder / Path(member.name).name).open("xb") as file:
                            shutil.copyfileobj(members.extractfile(member), file, BLOCK)
                while stream.read(BLOCK):  # up to the checksum at the end, as bsdtar lets a damaged part pass
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
