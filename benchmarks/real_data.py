"""What the model is worth on real data: rules, blends and training, with and without pre-training, in one command.

    python benchmarks/real_data.py path/to/real --work data/real
    python benchmarks/real_data.py path/to/real --work data/real --test steam --shares 1 --device cuda --jobs 6
    python benchmarks/real_data.py path/to/real --work data/real --report

Reads of each domain DIR/DOMAIN/items.jsonl.gz and sequences.jsonl.gz, as make_dataset.py does, and its embeddings from
DIR/embeddings/DOMAIN.npz (codes int8, scale). Every user's last item is the target; the list before it is the log.

1. A tokenizer and --seeds models are trained on the PRE_TRAIN domains, to predict the next item among all their items.
2. For each --test domain and each share of its users, a model is trained on their log twice, from drawn weights and
   from the pre-trained ones, with the same settings; NDCG@10 on the last items of the log chooses the number of steps,
   and a second training of as many steps sees these items, too.
3. predict.py --blend ranks all users of the domain by every method; items of the history are no candidates.

Every step is kept in --work and not repeated. --minutes M starts no step after so many minutes, and the next call goes
on. --report prints tables from what there is, with means and deviations over seeds and paired intervals.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from data_processing.parts.merging import count_items
from utils.cli import parser, positive_float, positive_int, run, seed
from utils.compare import MODEL, intervals, load_lists, user_gains, user_groups
from utils.datasets import load_sequences
from utils.files import read_json, read_jsonl, save_json, save_matrix, staged_set
from utils.metrics import list_ranks
from utils.pickles import load_pickle, save_pickle
from utils.util import print_table

PRE_TRAIN = ["amazon_books", "amazon_clothing", "amazon_electronics", "amazon_health", "amazon_beauty", "amazon_toys"]
PRE_TRAIN += ["microlens"]
TEST = ["yelp", "steam", "amazon_games"]
ENCODER = "all-MiniLM-L6-v2"
ROOT = Path(__file__).resolve().parents[1]

# Chosen on amazon_office, food, amazon_toys, microlens, the rate also by Steam's training loss: docs/log.md.
LAYERS = 2
BEST, LAST = f"layer_{LAYERS}_best.pt", f"layer_{LAYERS}_last.pt"  # what pre_train.py writes
MODEL_SIZE = f"--width 128 --tf_layer {LAYERS}"
PRE_TRAINING = "--batch_size 128 --lr 2e-3 --schedule cosine --warmup 0.05 --max_grad_norm 1 --dropout 0.1"
PRE_TRAINING += " --weight_decay 0.1 --predict items --max_steps 1000 --save_last"
BATCH = 128  # histories of a step of training on a domain
TRAINING = f"--batch_size {BATCH} --lr 2e-3 --schedule cosine --warmup 0.05 --max_grad_norm 1 --dropout 0.3"
TRAINING += " --weight_decay 0.1 --predict items --epoch 1000 --save_last --best_by ndcg --exclude_history"
PASSES, LEAST_STEPS = 12, 500  # over the histories, or as many passes as make so many steps
EVALUATION_STEPS = 20  # between evaluations, at least; otherwise there is one for each pass
STARTS = ("scratch", "pre-trained")
LEVELS = {  # what a method needs: 0 nothing of the domain, 1 its log, 2 training on it; 2 if it is not here
    **dict.fromkeys(("repeat recent", "nearest text", "whitened text", "blend (no log)"), 0),
    **dict.fromkeys(("popularity", "era popularity", "transitions", "item cosine", "EASE", "blend (its log)"), 1),
    **{f"blend with RecGPT, {start}": 2 for start in STARTS},
}


@dataclass
class Step:
    """A few commands that make one file; they are run if it is missing, and what it needs is there."""

    makes: Path
    commands: list["list[str] | Callable[[], list[str]] | Step"]  # a function is called when it is a command's turn
    needs: list["Step"] = field(default_factory=list)
    marks: bool = False  # whether `makes` is only a mark that the commands have ended, which none of them writes

    def run(self, deadline: float) -> bool:
        """Run the commands unless the file exists; whether it exists then. What they print goes into a log beside."""
        if self.makes.exists():
            return True
        if not all(step.makes.exists() for step in self.needs) or time.monotonic() > deadline:
            return False
        self.makes.parent.mkdir(parents=True, exist_ok=True)
        log = self.makes.with_suffix(".log")
        started = time.monotonic()
        with log.open("a") as said:
            for command in self.commands:
                if isinstance(command, Step):
                    if not command.run(deadline):
                        return False
                    continue
                command = command() if callable(command) else command
                if not command:
                    continue
                print("$", *command, file=said, flush=True)
                code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=said, stderr=said).returncode
                if code:
                    print(f"{self.makes}: exit code {code}, see {log}", flush=True)
                    return False
        if self.marks:
            self.makes.touch()
        print(f"{self.makes} made in {time.monotonic() - started:.0f} s", flush=True)
        return self.makes.exists()


def main() -> None:
    """Prepare, train, rank, report."""
    flags = parser(__doc__)
    flags.add_argument("data", type=Path, metavar="DIR", help="folder of the domains")
    flags.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything is made, and kept")
    flags.add_argument("--pre_train", nargs="+", default=PRE_TRAIN, metavar="DOMAIN", help="domains to pre-train on")
    flags.add_argument("--test", nargs="*", default=TEST, metavar="DOMAIN", help="domains to test on")
    flags.add_argument("--shares", type=positive_float, nargs="+", default=[0.01, 0.1, 1.0], help="of a domain's users")
    flags.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of training, and of drawing users")
    flags.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS, help="of training on a domain")
    flags.add_argument("--users", type=positive_int, default=20_000, help="of a domain that are tested, at most")
    flags.add_argument("--train_minutes", type=positive_float, help="of every training, at most; not of its repetition")
    flags.add_argument("--compare", nargs="*", default=[], metavar="NAME", help="lists WORK/peers/DOMAIN/NAME.jsonl")
    flags.add_argument("--jobs", type=positive_int, default=1, help="commands at the same time")
    flags.add_argument("--minutes", type=positive_float, default=1e6, help="start nothing after so many")
    flags.add_argument("--device", default="cpu", help="of training")
    flags.add_argument("--report", action="store_true", help="only print tables of what there is")
    args = flags.parse_args()
    work = args.work.resolve()
    if not args.report:
        deadline = time.monotonic() + 60 * args.minutes
        for domain in [*args.pre_train, *args.test]:
            make_data_set(args.data, domain, work / "sets" / domain, args.users)
        for stage in stages(args, work):
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(lambda step: step.run(deadline), stage))
    report(args, work)


def make_data_set(data: Path, domain: str, output: Path, users: int) -> None:
    """Write a data set directory of a domain: train.pkl ends before every user's last item, the target of test.pkl.

    At most so many `users` are in test.pkl, always the same.
    """
    if (output / "dataset.json").exists():
        return
    texts = {record["id"]: record["text"] for _, record in read_jsonl(data / domain / "items.jsonl.gz", "")}
    lists = [record["items"] for _, record in read_jsonl(data / domain / "sequences.jsonl.gz", "")]
    with np.load(data / "embeddings" / f"{domain}.npz") as packed:
        rows = packed["codes"].astype(np.float32) * packed["scale"].astype(np.float32)
    lists = {user: items for user, items in enumerate(lists) if len(items) > 1}
    tested = np.sort(np.random.default_rng(0).permutation(list(lists))[:users]).tolist()
    names = ("train.pkl", "test.pkl", "item_text_dict.pkl")
    with staged_set(output, names) as staging:
        save_pickle(staging / "train.pkl", {user: items[:-1] for user, items in lists.items()})
        save_pickle(staging / "test.pkl", {user: lists[user] for user in tested})
        save_pickle(staging / "item_text_dict.pkl", texts)
        save_matrix(staging / "item_text_embeddings.npy", rows)
        save_json(staging / "item_text_embeddings.json", {"encoder": ENCODER})
    print(f"{output}: {len(lists)} users, {len(rows)} items")


def share_of(source: Path, share: float, number: int, output: Path) -> None:
    """Write the data set with the log of a share of the users, drawn by a seed; test.pkl is the same."""
    if (output / "dataset.json").exists():
        return
    train = load_pickle(source / "train.pkl", dict, "")
    users = np.random.default_rng(number).permutation(list(train))[: max(2, round(share * len(train)))]
    with staged_set(output, ("train.pkl", "test.pkl")) as staging:
        save_pickle(staging / "train.pkl", {user: train[user] for user in sorted(users.tolist())})
        save_pickle(staging / "test.pkl", load_pickle(source / "test.pkl", dict, ""))
        for name in ("item_text_embeddings.npy", "item_text_embeddings.json"):
            os.link(source / name, staging / name)


def stages(args: argparse.Namespace, work: Path) -> Iterator[list[Step]]:
    """The steps of the experiment, those of one list independent of each other."""
    matrices = [f"{work}/sets/{domain}/item_text_embeddings.npy" for domain in args.pre_train]
    vae = work / "tokenizer/vae_len4_fsq88865_ep10.pt"
    fit = ["ae_trainer.py", "--embeddings", *matrices, "--output", str(vae.parent), "--epoch", "11", "--whiten"]
    tokenizer = Step(vae, [[*fit, "--device", args.device]])
    yield [tokenizer]

    sets = [f"{work}/sets/{domain}" for domain in args.pre_train]
    made = make_pre_train(sets, vae, work / "pre_train")
    pre_training = Step(work / "pre_train/whole/dataset.json", [made], [tokenizer])
    yield [pre_training]

    starts = {}
    for number in args.seeds:
        folder = work / f"pre_trained/{number}"
        # Whole lists: the domains of pre-training are not tested.
        settings = f"{MODEL_SIZE} {PRE_TRAINING} {limit(args)}"
        command = pre_train(work / "pre_train/whole", folder, number, args.device, settings)
        starts[number] = Step(folder / "trained.done", [command], [pre_training], marks=True)
    yield list(starts.values()) if "pre-trained" in args.starts else []

    runs = [
        Run(work, domain, share, number, start, args.device, limit(args))
        for share in sorted(args.shares, reverse=True)
        for number in args.seeds
        for domain in args.test
        for start in args.starts
    ]
    for domain, share, number in dict.fromkeys((one.domain, one.share, one.seed) for one in runs):
        share_of(work / "sets" / domain, share, number, Run(work, domain, share, number, "").data_set)
    data = {one.data: one.make_data(tokenizer) for one in runs}
    yield list(data.values())
    yield [one.train(vae, data[one.data], starts[one.seed]) for one in runs]


def limit(args: argparse.Namespace) -> str:
    """The flags that bound the time of a training."""
    return f"--minutes {args.train_minutes}" if args.train_minutes else ""


def make_pre_train(sets: list[str], vae: Path, output: Path) -> list[str]:
    """The command that makes training data of data sets."""
    command = ["data_processing/make_pre_train.py", "--datasets", *sets, "--vae_ckpt", str(vae)]
    return [*command, "--output", str(output), "--eval_users", "2000"]


def pre_train(data: Path, folder: Path, number: int, device: str, settings: str) -> list[str]:
    """The command that trains on a folder of data."""
    paths = ["--data_path", str(data), "--ckpt_dir", str(folder), "--log_file", str(folder / "log.jsonl")]
    exact = ["--mixed_precision", "bf16"] if device == "cuda" else []
    start = ["--seed", str(number), "--device", device, "--resume", "auto"]
    return ["pre_train.py", *settings.split(), *paths, *start, *exact]


@dataclass
class Run:
    """One training on a share of a domain's users, and what it leads to."""

    work: Path
    domain: str
    share: float
    seed: int
    start: str  # of STARTS
    device: str = ""
    limit: str = ""

    @property
    def name(self) -> str:
        """Domain, share and seed, as a path."""
        return f"{self.domain}/{self.share:g}/{self.seed}"

    @property
    def data_set(self) -> Path:
        """The data set with the log of the share's users."""
        return self.work / "shares" / self.name / self.domain

    @property
    def data(self) -> Path:
        """What training reads."""
        return self.work / "data" / self.name

    @property
    def folder(self) -> Path:
        """Where weights and results are."""
        return self.work / "runs" / self.name / self.start

    @property
    def results(self) -> Path:
        """What each user gets by each method, as predict.py --per_user writes it."""
        return self.folder / "users.npz"

    def make_data(self, tokenizer: Step) -> Step:
        """Make what training reads."""
        command = make_pre_train([str(self.data_set)], tokenizer.makes, self.data)
        return Step(self.data / "whole/dataset.json", [command], [tokenizer])  # which is written last

    def train(self, vae: Path, data: Step, start: Step) -> Step:
        """Train, repeat the best number of steps by validation on whole histories, and rank every user."""
        histories = len(load_pickle(self.data_set / "train.pkl", dict, ""))
        every = max(EVALUATION_STEPS, math.ceil(histories / BATCH))
        steps = every * max(PASSES, math.ceil(LEAST_STEPS / every))
        stopping = f"{self.limit} --max_steps {steps} --eval_every {every} --eval_path {self.data}/eval"
        weights = ["--init_from", str(start.makes.with_name(LAST))] if self.start == "pre-trained" else []
        trained, whole = self.folder / "trained", self.folder / "whole"
        fit = [
            *pre_train(self.data, trained, self.seed, self.device, f"{TRAINING} {stopping}"),
            *(weights or MODEL_SIZE.split()),
        ]
        again = pre_train(self.data / "whole", whole, self.seed, self.device, f"--refit_of {trained / BEST}")
        again += weights
        rank = ["predict.py", "--dataset", str(self.data_set), "--vae_ckpt", str(vae), "--blend", "fit"]
        rank += ["--exclude_history", "--topk", "5", "10", "--per_user", str(self.results), "--device", self.device]
        rank += ["--results", str(self.folder / "results.jsonl"), "--ckpt_path"]
        needs = [data, start] if self.start == "pre-trained" else [data]

        def untouched() -> bool:
            """Whether the weights that training started from were the best: there is nothing to repeat."""
            return read_json((trained / BEST).with_suffix(".json"))["step"] == 0

        def rank_best() -> list[str]:
            return [*rank, str(trained / BEST if untouched() else whole / LAST)]

        training = Step(self.folder / "trained.done", [fit], needs, marks=True)
        repetition = Step(self.folder / "whole.done", [lambda: [] if untouched() else again], marks=True)
        return Step(self.results, [training, repetition, rank_best])


# Tables


def report(args: argparse.Namespace, work: Path) -> None:
    """Print, for each domain and share, NDCG@10 of every method, and the differences that matter, with intervals."""
    for domain in args.test:
        for share in sorted(args.shares):
            found = {
                start: [gains(Run(work, domain, share, number, start).results) for number in args.seeds]
                for start in args.starts
            }
            found = {start: [one for one in seeds if one] for start, seeds in found.items()}
            if any(found.values()):
                peers = {name: peer_gains(work, domain, name) for name in args.compare if share == 1}
                print(f"\n{domain}, {share:.0%} of the users: NDCG@10, mean and deviation over seeds")
                print_domain({**found, "": [peers] if peers else []})


def gains(path: Path) -> dict[str, np.ndarray]:
    """NDCG@10 of every user with a new target (U,), by method; empty where the results are not there."""
    if not path.exists():
        return {}
    with np.load(path) as saved:
        members = saved["group: target is new"]
        return {name.removeprefix("ndcg: "): saved[name][members] for name in saved.files if name.startswith("ndcg: ")}


def peer_gains(work: Path, domain: str, name: str) -> np.ndarray:
    """The same of another recommender's lists, which was trained on the whole log of the domain."""
    test = load_sequences(work / "sets" / domain / "test.pkl", "")
    lists = load_lists(work / "peers" / domain / f"{name}.jsonl", test.users, count_items(work / "sets" / domain))
    histories, targets = test.split_targets()
    new = user_groups(histories, targets, None, exclude=True)["target is new"]
    longest = max(map(len, lists.values()))
    padded = torch.tensor([[*lists[user], *[-1] * (longest - len(lists[user]))] for user in test.users[new].tolist()])
    return user_gains({name: list_ranks(padded, torch.from_numpy(targets[new]))}, [10])[name]


def print_domain(found: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Print the methods of a domain and share, of which those with the model stand there once for each start."""
    rows, means = [], {}
    for start, seeds in found.items():
        for name in seeds[0] if seeds else ():
            label = f"{name}, {start}" if MODEL in name else name
            values = [one[name].mean() for one in seeds]
            means[label] = np.mean([one[name] for one in seeds], axis=0)  # of each user, over seeds
            row = [label, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")]
            rows += [row] if label not in [other[0] for other in rows] else []
    print_table(["method", "NDCG@10", "deviation"], sorted(rows, key=lambda row: row[1]))
    blended = "blend with RecGPT, scratch"
    pairs = [("RecGPT, pre-trained", "RecGPT, scratch"), (blended, "blend (its log)"), (blended, "SASRec")]
    pairs += [("blend with RecGPT, pre-trained", blended)]
    for left, right in pairs:
        if left in means and right in means:
            (one,) = intervals((means[left] - means[right])[None])
            ratio = means[left].mean() / max(1e-9, means[right].mean())
            bounds = f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"
            print(f"{left} over {right}: {bounds}, {ratio:.2f} times")
    for name, level in LEVELS.items():
        singles = {
            other: values.mean()
            for other, values in means.items()
            if not other.startswith("blend") and LEVELS.get(other, 2) <= level
        }
        if name in means and name.startswith("blend"):
            best = max(singles, key=singles.get)
            print(f"{name}: {means[name].mean() / singles[best]:.2f} times the best single method, {best}")


if __name__ == "__main__":
    run(main)
