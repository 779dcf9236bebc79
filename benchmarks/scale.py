"""Time and memory of every data step at the release's size, on made-up data.

    python benchmarks/scale.py --folder scratch --results scale.jsonl
    python benchmarks/scale.py --folder scratch --steps reviews codes --scale 0.01 --kills 10

Makes what it needs in FOLDER (about 60 GB at full size, the embeddings' holes not counted) and keeps it: a second run
makes nothing again. Each step runs in a process of its own; its peak is that of resident memory, mapped files included,
and of private memory alone. --twice also compares two runs byte by byte, --kills N also kills a run N times at random
moments and compares what comes out in the end.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np

from benchmarks import common
from utils.cli import parser, positive_float, run
from utils.errors import InputError
from utils.files import atomic_write
from utils.pickles import save_dict, save_list
from utils.util import append_results

ROOT = Path(__file__).resolve().parents[1]
USERS, INTERACTIONS, ITEMS = 12_472_073, 131_657_450, 15_491_643  # of the release
WIDTH = 768
REVIEWS, REVIEWED, REVIEWERS = 10_000_000, 1_000_000, 2_500_000  # lines; items and users among them
CODED = 1_000_000  # items whose codes are made
CHUNK = 1 << 16


class Step(NamedTuple):
    """A command to measure, what it needs and what it makes."""

    prepare: Callable[[Path, float], None]
    command: Callable[[Path, Path], list[str]]  # of the folder and the output
    target: str  # what was asked for


def main() -> None:
    """Measure the steps one after the other, and report each result at once."""
    flags = parser(__doc__)
    flags.add_argument("--folder", required=True, metavar="DIR", help="scratch space")
    flags.add_argument("--steps", nargs="+", choices=(*STEPS, *PROBES), default=[*STEPS, *PROBES], help="what to do")
    flags.add_argument("--scale", type=positive_float, default=1.0, help="size over the release's")
    flags.add_argument("--twice", action="store_true", help="compare the outputs of two runs byte by byte")
    flags.add_argument("--kills", type=int, default=0, help="kill a run so many times, and compare what comes out")
    flags.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    flags.add_argument("--results", metavar="FILE", help="append the results as JSON lines")
    args = flags.parse_args()
    common.check_results(args)
    folder = Path(args.folder)
    for name in args.steps:
        result = measure_step(name, folder, args) if name in STEPS else PROBES[name](folder, args.scale)
        report(name, args, result)


def measure_step(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds and peaks of memory of one step, and check whether further runs give the same bytes."""
    step = STEPS[name]
    step.prepare(folder, args.scale)
    output = folder / "out" / name
    shutil.rmtree(output, ignore_errors=True)
    result = {"asked": step.target, **measured(step.command(folder, output))}
    made = hashes(output)
    result["bytes"] = sum(path.stat().st_size for path in output.rglob("*") if path.is_file() and not path.is_symlink())
    if args.twice:
        shutil.rmtree(output)
        subprocess.run(step.command(folder, output), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        result["same_twice"] = hashes(output) == made
    if args.kills:
        shutil.rmtree(output)
        result["kills"] = killed(lambda: step.command(folder, output), output, result["seconds"], args.kills, args.seed)
        result["same_after_kills"] = hashes(output) == made
    return result


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; returns seconds, and peaks of resident and of private memory in GiB; InputError if it failed."""
    peaks = {"VmHWM": 0, "RssAnon": 0}
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
        while process.returncode is None:
            # The peak that Linux gives for a child, by wait4, includes what its parent held when it was started.
            for field in peaks:
                peaks[field] = max(peaks[field], common.status(process.pid, field))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        seconds = time.perf_counter() - started
        printed.seek(0)
        last = printed.read().strip().splitlines()[-1:]
    if process.returncode:
        raise InputError(f"{' '.join(command)} failed: {last}")
    return {"seconds": seconds, "peak_gib": peaks["VmHWM"] / 2**20, "private_gib": peaks["RssAnon"] / 2**20}


def killed(build: Callable[[], list[str]], output: Path, seconds: float, kills: int, seed: int) -> int:
    """Start the command that `build` gives, kill it at a random moment, and so on `kills` times; then let it end.

    If a run ends before it is killed, its output is removed, and the next run starts from nothing.
    """
    moments = random.Random(seed)  # noqa: S311 - no secret
    done = 0
    while done < kills:
        process = subprocess.Popen(build(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0, seconds))
            shutil.rmtree(output)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    subprocess.run(build(), check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done


def hashes(output: Path) -> dict[str, str]:
    """Path -> hash of every file in a folder, including what killed runs have left there."""
    found = {}
    for path in sorted(output.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                found[str(path.relative_to(output))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def report(name: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print a result, and append it to --results with machine and date."""
    record = {"benchmark": "scale", "step": name, "scale": args.scale, **common.rounded(result), **common.machine()}
    print(json.dumps(record, ensure_ascii=False), flush=True)
    append_results(args.results, [record])


# What the steps read


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Return the path of a file, which is made first if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path}", flush=True)
        make(path)
    return path


def scaled(count: int, scale: float) -> int:
    """A count of the release at another scale."""
    return max(100, round(count * scale))


def draw_lengths(users: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (users,) lengths of 5 or more with a long tail, whose sum is `total`."""
    lengths = 5 + np.minimum(rng.exponential(total / users - 5, users), 2000).astype(np.int64)
    for _ in range(20):
        short = total - lengths.sum()
        chosen = rng.integers(0, users, abs(short))
        np.add.at(lengths, chosen, np.sign(short))
        lengths = np.maximum(lengths, 5)
    return lengths


def histories(users: int, total: int, items: int, seed: int = 0) -> Iterator[tuple[int, list[int]]]:
    """Yield (user, item ids); low item ids are more popular."""
    rng = np.random.default_rng(seed)
    lengths = draw_lengths(users, total, rng)
    for start in range(0, users, CHUNK):
        ends = np.cumsum(lengths[start : start + CHUNK]).tolist()
        flat = (items * rng.random(ends[-1]) ** 2).astype(np.int64).tolist()
        for user, (first, end) in enumerate(zip([0, *ends], ends, strict=False), start=start):
            yield user, flat[first:end]


def make_release(folder: Path, scale: float) -> None:
    """Make train.pkl, token_id_list.pkl and the embeddings, float64 as published, as a sparse file."""
    users, total, items = (scaled(count, scale) for count in (USERS, INTERACTIONS, ITEMS))
    made_once(folder / "release/train.pkl", lambda path: save_dict(path, histories(users, total, items)))
    rng = np.random.default_rng(1)
    codes = (
        row
        for start in range(0, items, CHUNK)
        for row in rng.integers(0, 15360, (min(CHUNK, items - start), 4)).tolist()
    )
    made_once(folder / "release/token_id_list.pkl", lambda path: save_list(path, codes))
    made_once(folder / "release/all_item_text_embeddings.npy", lambda path: make_holes(path, items, "<f8"))


def make_holes(path: Path, rows: int, dtype: str) -> None:
    """Write a `.npy` (rows, WIDTH) as a sparse file, which takes no space."""
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (rows, WIDTH)})
        file.truncate(file.tell() + rows * WIDTH * np.dtype(dtype).itemsize)


def make_parts(folder: Path, scale: float, parts: int = 4) -> None:
    """Make as much data as the release has in four data sets, with embeddings, float32, as sparse files."""
    users, total, items = (scaled(count, scale) // parts for count in (USERS, INTERACTIONS, ITEMS))
    for part in range(parts):
        directory = folder / "parts" / f"part{part}"
        made_once(directory / "train.pkl", lambda path: save_dict(path, histories(users, total, items, part)))  # noqa: B023
        made_once(directory / "item_text_embeddings.npy", lambda path: make_holes(path, items, "<f4"))


def make_merged(folder: Path, scale: float) -> None:
    """Make the maps of item ids by which the embeddings are merged."""
    make_parts(folder, scale)
    merged = folder / "merged/item_id_maps.pkl"
    if not merged.exists():
        subprocess.run(merge_histories(folder, merged.parent), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def make_reviews(folder: Path, scale: float) -> None:
    """Make raw reviews, of 500 bytes and in no order, and metadata, of 1 KB, of which one in twenty is repeated."""
    made_once(folder / "raw/reviews.jsonl", lambda path: write_reviews(path, scale))
    made_once(folder / "raw/meta.jsonl", lambda path: write_metadata(path, scale))


def sentences(rng: np.random.Generator, words: int, count: int = 1000) -> list[str]:
    """Draw sentences, some of them not ASCII, as JSON strings."""
    known = ("the", "grüne", "naïve", "works", "well", "and", 'said "no"', "buy", "again", "日本", "for", "my", "pen")
    return [json.dumps(" ".join(rng.choice(known, words)), ensure_ascii=False) for _ in range(count)]


def write_reviews(path: Path, scale: float) -> None:
    """Write reviews as in Amazon Reviews 2023."""
    rng = np.random.default_rng(2)
    lines, items, users = (scaled(count, scale) for count in (REVIEWS, REVIEWED, REVIEWERS))
    texts = sentences(rng, 45)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, lines, CHUNK):
            size = min(CHUNK, lines - start)
            item = (items * rng.random(size) ** 2).astype(int).tolist()
            user = (users * rng.random(size) ** 2).astype(int).tolist()
            when = rng.integers(1_300_000_000, 1_700_000_000, size).tolist()  # seconds, so that some times are equal
            text = rng.integers(0, len(texts), size).tolist()
            file.writelines(
                f'{{"rating": 5.0, "title": "Stars", "text": {texts[t]}, "images": [], "asin": "B{i:09d}", '
                f'"parent_asin": "B{i:09d}", "user_id": "AE{u:026d}", "timestamp": {w}000, "helpful_vote": 0, '
                f'"verified_purchase": true}}\n'
                for i, u, w, t in zip(item, user, when, text, strict=True)
            )


def write_metadata(path: Path, scale: float) -> None:
    """Write metadata as in Amazon Reviews 2023, in no order."""
    rng = np.random.default_rng(3)
    items = scaled(REVIEWED, scale)
    order = np.concatenate([rng.permutation(items), rng.integers(0, items, items // 20)])
    titles, texts = sentences(rng, 12), sentences(rng, 100)
    drawn = rng.integers(0, len(texts), (2, len(order))).tolist()
    with path.open("w", encoding="utf-8") as file:
        for item, title, text in zip(order.tolist(), *drawn, strict=True):
            file.write(
                f'{{"main_category": "Office", "title": {titles[title]}, "average_rating": 4.2, "features": [], '
                f'"description": [{texts[text]}], "price": null, "images": [], "categories": ["Office", "Pens"], '
                f'"details": {{"Brand": "Bic", "Nr": {item}}}, "parent_asin": "B{item:09d}"}}\n'
            )


def make_embeddings(folder: Path, scale: float) -> None:
    """Make embeddings (items, WIDTH) float32, and a tokenizer for them."""
    made_once(folder / "codes/embeddings.npy", lambda path: write_embeddings(path, scaled(CODED, scale)))
    made_once(folder / "codes/tokenizer.pt", write_tokenizer)


def write_embeddings(path: Path, rows: int) -> None:
    """Write embeddings (rows, WIDTH) that are drawn at random."""
    rng = np.random.default_rng(4)
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, WIDTH)})
        for start in range(0, rows, CHUNK):
            file.write(
                (rng.standard_normal((min(CHUNK, rows - start), WIDTH), dtype=np.float32) / WIDTH**0.5).tobytes()
            )


def write_tokenizer(path: Path) -> None:
    """Save a tokenizer that was not trained."""
    import torch

    from ae_trainer import AutoEncoder

    torch.manual_seed(0)
    torch.save(AutoEncoder(WIDTH).state_dict(), path)


# The steps


def script(name: str, *arguments: Any) -> list[str]:
    """The command of a data script."""
    return [sys.executable, f"data_processing/{name}.py", *map(str, arguments)]


def pack(folder: Path, output: Path) -> list[str]:
    """Pack the release, whose files are linked into the output."""
    output.mkdir(parents=True, exist_ok=True)
    for source in (folder / "release").iterdir():
        if source.is_file() and not (output / source.name).exists():
            (output / source.name).symlink_to(source.resolve())
    return script("pack", "--data_path", output)


def merge_histories(folder: Path, output: Path) -> list[str]:
    """Merge the histories of the four data sets."""
    return script("data_process_2", "--datasets", *sorted((folder / "parts").iterdir()), "--output", output)


def merge_embeddings(folder: Path, output: Path) -> list[str]:
    """Merge their embeddings."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "merged/item_id_maps.pkl", output / "item_id_maps.pkl")
    parts = sorted((folder / "parts").iterdir())
    return script("pre_train_data_process", "--datasets", *parts, "--output", output, "--dtype", "float16")


def process_reviews(folder: Path, output: Path) -> list[str]:
    """Turn raw reviews into histories and texts."""
    raw = folder / "raw"
    inputs = ("--reviews", raw / "reviews.jsonl", "--meta", raw / "meta.jsonl")
    return script("data_process_1", *inputs, "--output", output)


def make_codes(folder: Path, output: Path) -> list[str]:
    """Turn embeddings into codes."""
    inputs = ("--embeddings", folder / "codes/embeddings.npy", "--vae_ckpt", folder / "codes/tokenizer.pt")
    return script("make_token_list", *inputs, "--output", output / "codes.pkl", "--device", "cpu")


STEPS = {
    "pack": Step(make_release, pack, "release pickles -> packed: 15 min, 16 GiB"),
    "reviews": Step(make_reviews, process_reviews, "10 million review lines and metadata: 5 min, 6 GiB"),
    "codes": Step(make_embeddings, make_codes, "codes of 1 million items: 60 s, 2 GiB"),
    "merge": Step(make_parts, merge_histories, "release-size histories of four data sets merged"),
    "embeddings": Step(make_merged, merge_embeddings, "release-size embeddings merged, float16"),
}


# What opening and batches take


def packed_release(folder: Path, scale: float) -> Path:
    """Make what the step `pack` makes, and return its folder."""
    make_release(folder, scale)
    output = folder / "out/pack"
    subprocess.run(pack(folder, output), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return output


def probe_opening(folder: Path, scale: float) -> dict[str, Any]:
    """Measure how long it takes, and how much memory, when two processes open the packed form at once."""
    packed = packed_release(folder, scale)
    context = multiprocessing.get_context("spawn")
    together, found = context.Barrier(2), context.Queue()
    processes = [context.Process(target=open_for_training, args=(packed, together, found)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [found.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    worst = {key: max(result[key] for result in results) for key in results[0]}
    return {"asked": "opening: 2 s, 300 MiB of private memory", **worst}


def open_for_training(packed: Path, together: Any, found: Any) -> None:
    """Open the packed form, draw the order of an epoch and make a batch; measures seconds and MiB without imports."""
    import pre_train  # noqa: F401 - what training imports is not counted
    from utils.data import training_batch
    from utils.packed import open_packed
    from utils.training.batches import epoch_batches

    together.wait()
    before, started = memory("Private"), time.perf_counter()
    data, header = open_packed(packed)
    result = {"seconds": time.perf_counter() - started, "private_mib": memory("Private") - before}
    rows = next(epoch_batches(len(data.sequences), 40, seed=0, epoch=0))
    training_batch(data.sequences.select(rows).last(256), data.catalog)
    result |= {
        "seconds_to_first_batch": time.perf_counter() - started,
        "private_mib_with_first_batch": memory("Private") - before,
    }
    together.wait()
    shared = memory("Shared")
    result["sum_of_items"] = int(data.sequences.items.sum()) + int(data.catalog.codes.sum())  # touches every page
    together.wait()
    result |= {"shared_mib_when_all_is_read": memory("Shared") - shared, "histories": header["histories"]}
    together.wait()  # pages count as shared only while both are there
    found.put(result)


def memory(kind: str) -> float:
    """MiB of this process's memory of a kind: Private or Shared, as Linux counts it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind) and "Hugetlb" not in line) / 1024


def probe_batches(folder: Path, scale: float) -> dict[str, Any]:
    """Measure histories per second of making batches, and of training on them (3 layers, width 768, on the CPU)."""
    import torch
    from accelerate import Accelerator

    import pre_train
    from model import RecGPT, RecGPTConfig
    from utils.data import training_batch
    from utils.packed import open_packed
    from utils.training.batches import epoch_batches

    data, _ = open_packed(packed_release(folder, scale))
    order = epoch_batches(len(data.sequences), 40, seed=0, epoch=0)
    batches = (training_batch(data.sequences.select(rows).last(256), data.catalog) for rows in order)
    for _ in range(50):
        next(batches)
    made = [common.seconds(lambda: next(batches), torch.device("cpu")) for _ in range(500)]
    accelerator = Accelerator(cpu=True)
    model = RecGPT(RecGPTConfig())
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))

    def step() -> None:
        batch = next(batches)
        pre_train.train_step(model, optimizer, [batch], batch.targets.numel(), accelerator)

    steps = [common.seconds(step, torch.device("cpu")) for _ in range(8)][1:]
    rates = {"histories_per_s": 40 / statistics.median(made), "trained_per_s": 40 / statistics.median(steps)}
    return {
        "asked": "10 times faster than training",
        **rates,
        "ratio": rates["histories_per_s"] / rates["trained_per_s"],
    }


PROBES = {"open": probe_opening, "batches": probe_batches}


if __name__ == "__main__":
    run(main)
