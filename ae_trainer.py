"""Train the item tokenizer: an autoencoder whose bottleneck is four FSQ codes.

    python ae_trainer.py --embeddings data/mine/item_text_embeddings.npy --output vae_ckpt
    python ae_trainer.py --embeddings a.npy b.npy --resume

Writes OUTPUT/vae_len4_fsq88865_ep0.pt, _ep10.pt, … and the last epoch, in the release's form, each with the codebook
and collision report as JSON beside it. The default start is from the data, because a plain initialisation maps
unit-norm embeddings, whose entries are near 0.05, to one code: --init plain is the published start.

--resume goes on from the checkpoint written last, on the same embeddings, with the settings it was written with unless
--epoch, --batch_size or --lr are typed.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from decoder import Decoder, check_width
from encoder import Encoder
from utils.checkpoint import fill_module, load_state, load_tensors, save_state, save_tensors
from utils.cli import ctrl_c_waits, parse_again, parser, positive_float, positive_int, run, seed
from utils.data import check_finite
from utils.errors import InputError, shown
from utils.files import check_whole, check_writable, load_matrix, lock_folder
from utils.fsq import CODEBOOK_SIZE, CODES_PER_ITEM, FSQ, LEVELS
from utils.training.batches import epoch_batches
from utils.util import add_device_flags, check_count, numbers_below, pick_device, set_seed

NAME = "vae_len4_fsq88865"
STATE = f"{NAME}.resume"  # beside the weights of the last checkpoint
SETTINGS = ("epoch", "batch_size", "lr", "init", "init_deviation", "seed")  # kept for --resume
FIXED = ("init", "init_deviation", "seed")  # of these, what a resumed training cannot change
DEFAULT_TOKENIZER = f"./vae_ckpt/{NAME}_ep90.pt"
CHECKPOINT_EVERY = 10  # epochs
ROUNDING = 1e-12  # of the numbers' mean square: variance of float32 rounding, with a margin
START_SAMPLE = 50_000  # items that the starting directions are computed from
REMEDY = "Make it with data_processing/TextEncoder_batch.py or make_dataset.py."


class AutoEncoder(nn.Module):
    """Embedding -> four slices -> four codes -> embedding; the trained quantizer is the tokenizer."""

    def __init__(self, embedding_width: int):
        super().__init__()
        self.encoder = Encoder()
        self.quantizer = FSQ(embedding_width // CODES_PER_ITEM)
        self.decoder = Decoder(embedding_width)
        self.embedding_width = embedding_width

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(N, E) float -> reconstruction (N, E) float and codes (N, K) int64."""
        quantized, codes = self.quantizer(self.encoder(embeddings))
        return self.decoder(quantized), codes

    @torch.inference_mode()
    def tokenize(self, embeddings: np.ndarray, source: str = "the embeddings", batch_size: int = 8192) -> np.ndarray:
        """Codes (N, K) int16 of item embeddings (N, E), read batch by batch.

        Raises:
            InputError: another width than the tokenizer's, or an embedding that is not finite.
            ValueError: no matrix of real numbers, or no batch size.
        """
        check_count(batch_size, "batch_size")
        self._check_width(embeddings, source)
        device = self.quantizer.project_in.weight.device
        codes = np.empty((len(embeddings), CODES_PER_ITEM), dtype=np.int16)
        for start in range(0, len(embeddings), batch_size):
            batch = np.array(embeddings[start : start + batch_size], dtype=np.float32)
            check_finite(batch, start, source)
            _, found = self.quantizer(self.encoder(torch.from_numpy(batch).to(device)))
            codes[start : start + len(batch)] = found.cpu().numpy()
        return codes

    def _check_width(self, embeddings: np.ndarray, source: str) -> None:
        """What `tokenize` raises for embeddings as a whole."""
        if not isinstance(embeddings, np.ndarray) or embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
            raise ValueError(f"{source}: expected a matrix (items, width) of real numbers, found {shown(embeddings)}")
        if embeddings.shape[1] != self.embedding_width:
            raise InputError(
                f"{source}: embeddings are {embeddings.shape[1]} wide, the tokenizer expects {self.embedding_width}. "
                "Use the encoder it was trained with, or train a tokenizer on these (ae_trainer.py)."
            )

    @torch.no_grad()
    def start_from(self, embeddings: np.ndarray, deviation: float = 1.0) -> None:
        """Point `project_in` along five principal directions of the slices of (n, E), each scaled to one deviation.

        The four slices share one quantizer but have different means. Directions that differ between those means are
        left out, so that every slice is spread over the levels around their middle. A deviation below 1 uses fewer
        codes: each is then seen more often in training, and more items share all four. A direction along which nothing
        varies, beyond what rounding does, is left at zero.

        Raises:
            InputError: another width than the tokenizer's, or an embedding that is not finite.
            ValueError: no row.
        """
        self._check_width(embeddings, "the embeddings")
        if not len(embeddings):
            raise ValueError("found no embedding, expected one or more")
        check_finite(embeddings, 0, "the embeddings")
        slices = self.encoder(torch.from_numpy(embeddings).double())  # (n, K, E/K)
        slice_means = slices.mean(0)  # (K, E/K)
        mean = slice_means.mean(0)
        between = torch.linalg.svd(slice_means - mean, full_matrices=False).Vh[: CODES_PER_ITEM - 1]  # (K - 1, E/K)
        centred = (slices - slice_means).flatten(0, 1)  # (n * K, E/K)
        centred = centred - centred @ between.T @ between
        variance, directions = torch.linalg.eigh(torch.cov(centred.T))  # ascending
        variance, least = variance[-len(LEVELS) :], ROUNDING * slices.square().mean()
        scale = torch.where(
            variance > least, deviation * variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt(), 0.0
        )
        weight = (directions[:, -len(LEVELS) :] * scale).T.flip(0)  # (5, E/K), the widest direction first
        self.quantizer.project_in.weight.copy_(weight)
        self.quantizer.project_in.bias.copy_(-(weight @ mean))

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any code: a hash of `project_in`."""
        digest = hashlib.sha256()
        for parameter in self.quantizer.project_in.parameters():
            digest.update(parameter.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> AutoEncoder:
    """The tokenizer of a checkpoint, in evaluation mode; the encoder weights that the release carries are dropped.

    Raises:
        InputError: missing or damaged file, or not a tokenizer.
    """
    state = {name: value for name, value in load_state(path).items() if not name.startswith("encoder.")}
    if "quantizer.project_in.weight" not in state or state["quantizer.project_in.weight"].ndim != 2:
        raise InputError(f"{path} holds no tokenizer (quantizer.project_in is missing). Give a file of ae_trainer.py.")
    width = state["quantizer.project_in.weight"].shape[1] * CODES_PER_ITEM
    check_width(width, path)
    if sum(value.numel() for value in state.values()) < width**2:  # before more is made than memory may hold
        raise InputError(f"{path} holds too few numbers for embeddings {width} wide. Give a file of ae_trainer.py.")
    tokenizer = AutoEncoder(width)
    fill_module(tokenizer, state, path)
    return tokenizer.to(device).eval()


def codebook_report(codes: np.ndarray, embeddings: np.ndarray | None = None) -> dict[str, Any]:
    """How well codes (N, K) tell items apart; with embeddings (N, E), how well they tell distinct ones apart.

    Returns:
        codes_used of 15,360; perplexity of the code distribution; collisions: items that share all four codes with
        another; distinct_share: share of distinct embeddings whose four codes no other distinct embedding has.

    Raises:
        ValueError: codes that are none.
    """
    counts = np.bincount(numbers_below(codes.ravel(), CODEBOOK_SIZE, "codes"), minlength=CODEBOOK_SIZE)
    share = counts[counts > 0] / max(1, counts.sum())
    _, sharing = np.unique(codes, axis=0, return_counts=True)
    report = {
        "items": len(codes),
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 1),
        "collisions": int(sharing[sharing > 1].sum()),
    }
    if embeddings is not None and len(embeddings):
        rows = np.ascontiguousarray(embeddings).view(np.dtype((np.void, embeddings.shape[1] * embeddings.itemsize)))
        _, first = np.unique(rows.ravel(), return_index=True)
        _, sharing = np.unique(codes[first], axis=0, return_counts=True)
        report["distinct_share"] = round(float((sharing == 1).sum() / len(first)), 4)
    return report


def describe(report: dict[str, Any]) -> str:
    """One line for a codebook report."""
    line = "{items} items: {codes_used} of 15360 codes in use, perplexity {perplexity}, {collisions} in collisions"
    distinct = ", {distinct_share:.2%} of distinct embeddings have codes of their own"
    return (line + (distinct if "distinct_share" in report else "")).format(**report)


def to_float32(matrix: np.ndarray, source: str) -> np.ndarray:
    """(N, E) float -> float32 in memory; InputError for values that are not finite there."""
    with np.errstate(over="ignore"):
        rows = np.array(matrix, dtype=np.float32)
    check_finite(rows, 0, source)
    return rows


def load_training_rows(paths: list[str]) -> np.ndarray:
    """All rows with text of some embedding files: (n, E) float32.

    Raises:
        InputError: widths differ or do not fit, NaN, no rows, or a matrix that is not the one of the JSON beside it.
    """
    for path in paths:
        check_whole(Path(path).with_suffix(".json"))
    matrices = [load_matrix(path, REMEDY) for path in paths]
    for path, matrix in zip(paths, matrices, strict=True):
        check_width(matrix.shape[1], path)
        if matrix.shape[1] != matrices[0].shape[1]:
            raise InputError(
                f"{path} is {matrix.shape[1]} wide, {paths[0]} is {matrices[0].shape[1]}: one encoder for all, please."
            )
    rows = np.concatenate([to_float32(matrix, path) for path, matrix in zip(paths, matrices, strict=True)])
    rows = rows[rows.any(axis=1)]
    if len(rows) < 2:
        raise InputError(f"{', '.join(paths)}: {len(rows)} rows with text, expected at least two. {REMEDY}")
    return rows


def digest(rows: np.ndarray) -> str:
    """What tells rows (n, E) from all others."""
    return hashlib.blake2b(rows, digest_size=16).hexdigest()


def train_epoch(
    model: AutoEncoder, optimizer: torch.optim.Optimizer, rows: np.ndarray, batch_size: int, seed: int, epoch: int
) -> float:
    """One pass over the rows (n, E); returns the mean L1 between embeddings and reconstructions.

    Raises:
        InputError: the loss, or a weight at the end, is not finite.
    """
    device = model.quantizer.project_in.weight.device
    total = 0.0
    model.train()
    for batch in epoch_batches(len(rows), batch_size, seed, epoch):
        embeddings = torch.from_numpy(rows[batch]).to(device)
        reconstruction, _ = model(embeddings)
        loss = F.l1_loss(reconstruction, embeddings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
        if not math.isfinite(total):
            raise diverged(f"the loss is {loss.item()}", epoch)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise diverged(f"{name} holds NaN or infinity", epoch)
    model.eval()
    return total / len(rows)


def diverged(found: str, epoch: int) -> InputError:
    """The error that ends a training."""
    return InputError(
        f"{found} in epoch {epoch}: training has diverged. Lower --lr, anew or, where a checkpoint was written, with "
        "--resume; it is kept."
    )


def train(
    model: AutoEncoder,
    optimizer: torch.optim.Optimizer,
    rows: np.ndarray,
    args: argparse.Namespace,
    first: int,
    facts: dict[str, Any],
) -> None:
    """The epochs from `first` on, with a checkpoint at every tenth and the last; rows (n, E) float32.

    Raises:
        KeyboardInterrupt: with what is kept.
    """
    folder, kept, epoch = Path(args.output), first, first
    progress = tqdm(range(first, args.epoch), initial=first, total=args.epoch, desc="tokenizer", unit="epoch")
    try:
        for epoch in progress:
            loss = train_epoch(model, optimizer, rows, args.batch_size, args.seed, epoch)
            progress.set_postfix(l1=f"{loss:.5f}")
            if epoch % CHECKPOINT_EVERY == 0 or epoch == args.epoch - 1:
                report = codebook_report(model.tokenize(rows), rows)
                metadata = {"epoch": epoch, "l1": loss, "tokenizer": model.fingerprint(), "report": report}
                metadata |= {"embedding_width": model.embedding_width, "data": args.embeddings}
                path = folder / f"{NAME}_ep{epoch}.pt"
                with ctrl_c_waits():
                    if epoch == 0:  # a state of an earlier training must not stand beside these weights
                        (folder / STATE).unlink(missing_ok=True)
                    save_state(path, model.state_dict(), metadata)
                    save_training(folder / STATE, model, optimizer, epoch, facts)
                    kept = epoch + 1
                progress.write(f"{path}: {describe(report)}")
    except KeyboardInterrupt as error:
        what = f"{kept} of {args.epoch} epochs are kept in {folder}; go on with --resume" if kept else "nothing is kept"
        raise KeyboardInterrupt(f"interrupted in epoch {epoch}: {what}") from error


def save_training(
    path: Path, model: AutoEncoder, optimizer: torch.optim.Optimizer, epoch: int, facts: dict[str, Any]
) -> None:
    """Write what --resume needs: weights, optimizer, finished epochs, the random state of dropout, and `facts`."""
    save_tensors(
        path,
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch,
            "random": torch.get_rng_state(),
            **facts,
        },
    )


def read_training(path: Path) -> dict[str, Any]:
    """What `save_training` wrote.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        with path.open("rb") as file:
            saved = load_tensors(file)
        kinds = {"settings": dict, "data": str, "model": dict, "optimizer": dict, "epoch": int, "random": Tensor}
        for name, kind in kinds.items():
            if not isinstance(saved[name], kind):
                raise ValueError(f"{name} is {saved[name]!r}")
        if saved["epoch"] < 0:
            raise ValueError(f"epoch is {saved['epoch']}")
    except FileNotFoundError:
        raise InputError(f"--resume: {path} does not exist. Start without --resume.") from None
    except Exception as error:  # torch raises many types for damaged or refused files
        raise unfit(path, error) from error
    return saved


def unfit(path: Path, error: Exception) -> InputError:
    """The error that a state gives with which nothing can go on."""
    reason = " ".join(f"{type(error).__name__} {error}".split())[:160]
    return InputError(f"--resume: {path} is damaged or does not fit ({reason}). Start without --resume.")


def restore(path: Path, saved: dict[str, Any], model: AutoEncoder, optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Weights, optimizer and random state as `read_training` found them in `path`, with the learning rate of now."""
    try:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
    except Exception as error:
        raise unfit(path, error) from error
    for group in optimizer.param_groups:
        group["lr"] = lr


def flags() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--embeddings", nargs="+", required=True, metavar="FILE", help=".npy matrices (items, width)")
    made.add_argument("--output", default="./vae_ckpt", help="folder for the checkpoints")
    made.add_argument("--epoch", type=positive_int, default=100, help="epochs in all")
    made.add_argument("--batch_size", type=positive_int, default=256, help="items per step")
    made.add_argument("--lr", type=positive_float, default=1e-4, help="Adam's learning rate")
    made.add_argument("--init", choices=("data", "plain"), default="data", help="start of project_in")
    made.add_argument(
        "--init_deviation", type=positive_float, default=1.0, help="spread of the data start; less: fewer codes"
    )
    made.add_argument("--seed", type=seed, default=0, help="order of the items and initial weights")
    made.add_argument(
        "--resume", action="store_true", help="go on from OUTPUT's last checkpoint, with its settings unless typed"
    )
    add_device_flags(made)
    return made


def parse() -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The command line and, with --resume, the state to go on from, whose settings stand in for what was not typed.

    Raises:
        InputError: see `read_training` and `parse_again`.
    """
    made = flags()
    args = made.parse_args()
    path = Path(args.output) / STATE
    check_writable(path)
    if not args.resume:
        if path.exists():
            print(
                f"{path} is of an earlier training: it, and checkpoints of the same names, will be replaced. To go on "
                "with it, stop and give --resume; to keep it, give another --output."
            )
        return args, None
    saved = read_training(path)
    args, told = parse_again(made, saved["settings"], FIXED, path, ["--embeddings", *args.embeddings])
    print(f"going on from {path}, {saved['epoch'] + 1} of {args.epoch} epochs finished{told}")
    return args, saved


def build(args: argparse.Namespace, rows: np.ndarray) -> tuple[AutoEncoder, torch.optim.Optimizer]:
    """A tokenizer of the rows (n, E) as --init and --seed make it, and its optimizer."""
    device = pick_device(args)
    set_seed(args.seed)
    model = AutoEncoder(rows.shape[1])
    if args.init == "data":
        sample = np.random.default_rng(args.seed).permutation(len(rows))[:START_SAMPLE]
        model.start_from(rows[np.sort(sample)], args.init_deviation)
    model.to(device)
    return model, torch.optim.Adam(model.parameters(), lr=args.lr)


def main() -> None:
    """Parse, keep other runs away, train."""
    args, saved = parse()
    lock = lock_folder(Path(args.output), "--output")
    try:
        begin_or_go_on(args, saved)
    finally:
        os.close(lock)


def begin_or_go_on(args: argparse.Namespace, saved: dict[str, Any] | None) -> None:
    """Train from the start, or from what `read_training` has found.

    Raises:
        InputError: that was trained on other embeddings.
    """
    path, first = Path(args.output) / STATE, 0
    rows = load_training_rows(args.embeddings)
    facts = {"settings": {name: vars(args)[name] for name in SETTINGS}, "data": digest(rows)}
    model, optimizer = build(args, rows)
    if saved is not None:
        if saved["data"] != facts["data"]:
            raise InputError(
                f"{path} was trained on other embeddings than {', '.join(args.embeddings)} are now. Give what it was "
                "trained on, in the same order, or start without --resume."
            )
        restore(path, saved, model, optimizer, args.lr)
        first = saved["epoch"] + 1
    train(model, optimizer, rows, args, first, facts)
    if first >= args.epoch:
        print(f"nothing to do: {first} epochs are finished")


if __name__ == "__main__":
    run(main)
