"""Run pre_train.py and report memory and loss by quarter: whether it grows, and whether it learns.

    python benchmarks/steady.py --max_steps 2000 --eval_every 200 --save_every 500 --keep 2

Flags other than its own go to pre_train.py. Its private memory (RssAnon) is read fifty times a second, and beside it
the pages of mapped data (RssFile), which Linux takes back when it needs the room.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import torch

from benchmarks import common
from utils.cli import parser, run
from utils.errors import InputError
from utils.files import check_writable

PRE_TRAIN = Path(__file__).resolve().parents[1] / "pre_train.py"
SAMPLE_EVERY = 0.02  # seconds
QUARTERS = 4


def main() -> None:
    """Run, sample, report by quarter."""
    flags = parser(__doc__)
    flags.add_argument("--log_file", default="logs/steady.jsonl", help="of pre_train.py; must not be there yet")
    flags.add_argument("--results", metavar="FILE", help="append the result as one JSON line")
    args, further = flags.parse_known_args()
    if Path(args.log_file).exists():
        raise InputError(f"--log_file {args.log_file} is there already: name another, or remove it.")
    common.check_results(args)
    check_writable(args.log_file)

    command = [sys.executable, str(PRE_TRAIN), "--log_file", args.log_file, *further]
    process = subprocess.Popen(command)
    samples = []  # time, private memory and mapped pages in GiB
    while process.poll() is None:
        samples.append((time.time(), *(common.status(process.pid, field) / 2**20 for field in ("RssAnon", "RssFile"))))
        time.sleep(SAMPLE_EVERY)
    if process.returncode:
        raise InputError(f"pre_train.py ended with exit code {process.returncode}: see above.")

    records = [json.loads(line) for line in Path(args.log_file).read_text().splitlines()]
    quarters = [quarter(records, samples, number) for number in range(QUARTERS)]
    first, last = quarters[0], quarters[-1]
    result = {"growth": last["private_gib"] / first["private_gib"] - 1, "quarters": quarters, "flags": further}
    common.report("steady", args, torch.device("cpu"), result)


def quarter(records: list[dict], samples: list[tuple], number: int) -> dict[str, float]:
    """Summarise the log and the samples of memory of one quarter of the steps, from 0 on; InputError without any."""
    ends = [records[-1]["step"] * part / QUARTERS for part in (number, number + 1)]
    since, until = (next(record["time"] for record in records if record["step"] >= end) for end in ends)
    mine = [record for record in records if ends[0] < record["step"] <= ends[1]]
    seen = [sample[1:] for sample in samples if since < sample[0] <= until]
    losses, held_out = ([record[key] for record in mine if key in record] for key in ("loss", "eval_loss"))
    if not losses or not seen:
        raise InputError(f"nothing was reported in quarter {number + 1} of the steps: take more (--max_steps 100).")
    summary = {
        "private_gib": max(private for private, _ in seen),
        "median_private_gib": statistics.median(private for private, _ in seen),
        "mapped_gib": max(mapped for _, mapped in seen),
        "loss": statistics.mean(losses),
        **({"eval_loss": held_out[-1]} if held_out else {}),
    }
    return {name: round(value, 4) for name, value in summary.items()}


if __name__ == "__main__":
    run(main)
