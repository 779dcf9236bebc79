"""Time several processes of pre_train.py on the CPU, in histories per second, against one; each on one thread.

    python benchmarks/processes.py --sequences data/test/steam/test.pkl
    python benchmarks/processes.py --processes 4 --batch_size 40

No time is printed unless N processes with b histories each have the losses of one process with N*b, to 1e-5, without
dropout. Then both run in turn, with b histories per process and step and the published settings.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch

from benchmarks import common
from utils.cli import positive_int, run
from utils.errors import InputError
from utils.pickles import save_pickle

ROOT = Path(__file__).resolve().parents[1]
CHECKED = 3  # steps whose losses are compared
REPORT = 10  # steps between two reports of pre_train.py


def main() -> None:
    """Make data, check, time, report."""
    flags = common.benchmark_parser(__doc__)
    flags.set_defaults(repeats=3)
    common.add_model_flags(flags)
    flags.add_argument("--processes", type=positive_int, default=2, help="to compare with one")
    flags.add_argument("--batch_size", type=positive_int, default=12, help="histories per process and step")
    flags.add_argument("--reports", type=positive_int, default=2, help=f"of {REPORT} steps in each run, after a first")
    args = flags.parse_args()
    common.check_model_flags(args)
    if args.processes == 1:
        raise InputError("--processes 1 is what the others are held against: give 2 or more.")
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), args)
        check(Path(folder), args)
        rates = {1: [], args.processes: []}
        for _ in range(args.repeats):
            for processes, found in rates.items():
                further = ["--max_steps", REPORT * (args.reports + 1)]
                logged = pre_train(Path(folder), args, processes, args.batch_size, further)
                found.append(statistics.median(record["histories_per_s"] for record in logged[1:]))
    one, several = (statistics.median(found) for found in rates.values())
    ratios = [round(theirs / ours, 3) for ours, theirs in zip(*rates.values(), strict=True)]
    result = {
        "ratio": several / one,
        "histories_per_s": several,
        "one_process_histories_per_s": one,
        "all_ratios": ratios,
    }
    common.report("processes", args, torch.device("cpu"), result)


def make_data(folder: Path, args) -> None:
    """Write folder/pre_train in the release's layout, with as many histories as the longest run reads."""
    rng = np.random.default_rng(args.seed)
    steps = max(CHECKED, REPORT * (args.reports + 1))
    sequences = common.draw_histories(args, args.processes * args.batch_size * steps, rng)
    catalog = common.draw_catalog(args.items, rng)
    (folder / "pre_train").mkdir()
    save_pickle(folder / "pre_train/train.pkl", dict(enumerate(sequences.lists())))
    save_pickle(folder / "pre_train/token_id_list.pkl", catalog.codes.tolist())
    np.save(folder / "pre_train/all_item_text_embeddings.npy", catalog.embeddings)


def check(folder: Path, args) -> None:
    """Raise InputError unless the processes together have the losses of one process with all their histories."""
    further = ["--max_steps", CHECKED, "--save_every", 1, "--dropout", 0]
    alone, together = (
        [record["loss"] for record in pre_train(folder, args, processes, batch_size, further)]
        for processes, batch_size in ((1, args.processes * args.batch_size), (args.processes, args.batch_size))
    )
    if len(alone) != CHECKED or not np.allclose(together, alone, rtol=1e-5, atol=0):
        raise InputError(f"wrong: losses {together}, of one process {alone}; no time is reported")
    print(f"losses {together}, of one process {alone}")


def pre_train(folder: Path, args, processes: int, batch_size: int, further: list) -> list[dict]:
    """Run pre_train.py with `further` flags; returns the records of its log that have a loss."""
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes] if processes > 1 else []
    command = [sys.executable, *launcher, ROOT / "pre_train.py", "--device", "cpu", "--batch_size", batch_size]
    command += ["--data_path", folder / "pre_train", "--ckpt_dir", folder / "ckpt", "--keep", 1, "--log_file", log]
    command += ["--tf_layer", args.tf_layer, "--width", args.width, "--seed", args.seed, *further]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"pre_train.py failed with {processes} process(es): {done.stderr.strip()[-500:]}")
    return [record for record in map(json.loads, log.read_text().splitlines()) if "loss" in record]


if __name__ == "__main__":
    run(main)
