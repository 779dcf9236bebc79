"""Train the item tokenizer: an autoencoder whose bottleneck is four FSQ codes, or as many as --codes says.

    python ae_trainer.py --embeddings data/mine/item_text_embeddings.npy --output vae_ckpt
    python ae_trainer.py --embeddings a.npy b.npy --resume
    python ae_trainer.py --embeddings a.npy --codes 8 --levels 8,5,5,5

Writes OUTPUT/vae_len4_fsq88865_ep0.pt, _ep10.pt, … and the last epoch, in the release's form, each with a JSON beside
it that says how many codes are in use and how many items collide. By default the weights start from the data, because
a plain initialisation maps unit-norm embeddings, whose entries are near 0.05, to one code: --init plain is published.
With --whiten every embedding file, the catalog of one data set, is whitened first (utils/whitening.py); what the
tokenizer encodes later is whitened likewise, and the checkpoint says so.

--resume goes on from the checkpoint written last, on the same embeddings, with its settings unless --epoch,
--batch_size or --lr are typed. The loop is in `train`.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import hashlib
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from decoder import Decoder, check_width
from encoder import Encoder
from utils.checkpoint import (
    agreed_config,
    fill_module,
    load_state,
    load_tensors,
    read_metadata,
    save_state,
    save_tensors,
)
from utils.cli import (
    SWITCH,
    add_settings,
    hold_ctrl_c,
    parse_resumed,
    parser,
    positive_float,
    positive_int,
    run,
    seed,
    setting,
)
from utils.data import check_finite
from utils.datasets import is_whitened
from utils.errors import InputError, reason, shown
from utils.files import check_writable, load_matrix, lock_folder
from utils.fsq import FSQ, PUBLISHED, VERSION, Codebook, sharing
from utils.pretrained import TOKENIZER, TOKENIZER_FOLDER, fetched, kind_of, pretrained_directory, save_folder
from utils.random_codes import RandomCodes
from utils.training.batches import epoch_batches
from utils.util import add_device_flags, check_count, numbers_below, pick_device, set_seed
from utils.whitening import WHITENED, WhitenedMatrix, Whitening

NAME = "vae_{}"  # of a codebook's name
STATE = "vae_{}.resume"  # beside the weights of the last checkpoint
FIXED = ("levels", "codes", "init", "init_deviation", "whiten", "seed")  # what a resumed training cannot change
DEFAULT_TOKENIZER = f"./vae_ckpt/{NAME.format(PUBLISHED.name)}_ep90.pt"
WHITENS = "whitening"  # among the weights of a tokenizer that whitens embeddings
CHECKPOINT_EVERY = 10  # epochs
ROUNDING = 1e-12  # variance of float32 rounding, with a margin, as a part of the numbers' mean square
START_SAMPLE = 50_000  # items that the starting directions are computed from
REMEDY = "Make it with data_processing/TextEncoder_batch.py or make_dataset.py."


def levels(text: str) -> str:
    """Type of a flag: the numbers of levels, with commas between them."""
    if not text.replace(",", "").isascii() or not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 8,5,5,5, found {shown(text)}")
    return ",".join(str(int(part)) for part in text.split(","))


@dataclass(frozen=True)
class TokenizerSettings:
    """How a tokenizer is trained; each field is a flag, and a resumed training has them unless others are typed."""

    levels: str = setting(",".join(map(str, PUBLISHED.levels)), "of the numbers that a code stands for", type=levels)
    codes: int = setting(PUBLISHED.per_item, "codes per item", type=positive_int)
    epoch: int = setting(100, "epochs in all", type=positive_int)
    batch_size: int = setting(256, "items per step", type=positive_int)
    lr: float = setting(1e-4, "Adam's learning rate", type=positive_float)
    init: str = setting("data", "start of project_in", choices=("data", "plain"))
    init_deviation: float = setting(
        1.0, "standard deviation along each direction of the data start; less: fewer codes", type=positive_float
    )
    whiten: bool = setting(False, "whiten the embeddings of each file, and later of each data set", **SWITCH)
    seed: int = setting(0, "order of the items and initial weights", type=seed)

    @property
    def codebook(self) -> Codebook:
        """The codes to be trained; InputError if there are none such."""
        try:
            return Codebook(tuple(map(int, self.levels.split(","))), self.codes)
        except ValueError as error:
            raise InputError(f"--levels {self.levels}, --codes {self.codes}: {error}. Give others.") from error


class AutoEncoder(nn.Module):
    """Embedding -> K slices -> K codes -> embedding; the trained quantizer is the tokenizer."""

    def __init__(self, embedding_width: int, whitens: bool = False, codebook: Codebook = PUBLISHED):
        super().__init__()
        self.codebook = codebook
        self.encoder = Encoder(codebook.per_item)
        self.quantizer = FSQ(embedding_width // codebook.per_item, codebook)
        self.decoder = Decoder(embedding_width, codebook.per_item)
        self.embedding_width = embedding_width
        self.whitens = whitens
        if whitens:  # stands among the weights, because codes of embeddings that are not whitened would be wrong
            self.register_buffer(WHITENS, torch.tensor(1.0))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct item embeddings: (N, E) float -> (N, E) float, and their codes (N, K) int64."""
        quantized, codes = self.quantizer(self.encoder(embeddings))
        return self.decoder(quantized), codes

    def prepare(self, embeddings: np.ndarray, source: str = "the embeddings") -> np.ndarray | WhitenedMatrix:
        """The embeddings (N, E) of one data set as tokenizer and model read them: whitened, if it was trained so."""
        self._check_width(embeddings, source)
        return WhitenedMatrix(embeddings, source) if self.whitens else embeddings

    def prepared_encoder(self, encoder: str | None) -> str | None:
        """Name of the encoder of embeddings that `prepare` has prepared; None where it is not known."""
        return encoder + WHITENED if encoder and self.whitens else encoder

    @torch.inference_mode()
    def tokenize(self, embeddings: np.ndarray, source: str = "the embeddings", batch_size: int = 8192) -> np.ndarray:
        """Compute the codes (N, K) int16 of prepared embeddings (N, E) float, which are read batch by batch.

        Raises:
            InputError: another width than the tokenizer's, or an embedding that is not finite.
            ValueError: not a matrix of real numbers, or not a batch size.
        """
        check_count(batch_size, "batch_size")
        self._check_width(embeddings, source)
        device = self.quantizer.project_in.weight.device
        codes = np.empty((len(embeddings), self.codebook.per_item), dtype=np.int16)
        for start in range(0, len(embeddings), batch_size):
            batch = np.array(embeddings[start : start + batch_size], dtype=np.float32)
            check_finite(batch, start, source)
            _, found = self.quantizer(self.encoder(torch.from_numpy(batch).to(device)))
            codes[start : start + len(batch)] = found.cpu().numpy()
        return codes

    def _check_width(self, embeddings: np.ndarray, source: str) -> None:
        """Raise what `tokenize` raises for embeddings as a whole."""
        is_matrix = isinstance(embeddings, (np.ndarray, WhitenedMatrix)) and embeddings.ndim == 2
        if not is_matrix or embeddings.dtype.kind not in "fiu":
            raise ValueError(f"{source}: expected a matrix (items, width) of real numbers, found {shown(embeddings)}")
        if embeddings.shape[1] != self.embedding_width:
            raise InputError(
                f"{source}: embeddings are {embeddings.shape[1]} wide, the tokenizer expects {self.embedding_width}. "
                "Use the encoder it was trained with, or train a tokenizer on these (ae_trainer.py)."
            )

    @torch.no_grad()
    def start_from(self, embeddings: np.ndarray, std: float = 1.0) -> None:
        """Set `project_in` to the principal directions of the slices of (n, E), one a level, each scaled to one `std`.

        The slices of an item share one quantizer but have different means. The directions between those means are left
        out, so that every slice is spread over the levels around their middle. A `std` below 1 uses fewer codes: each
        is then seen more often in training, and more items share all of theirs. A direction along which nothing varies,
        rounding apart, is left at zero.

        Raises:
            InputError: another width than the tokenizer's, or an embedding that is not finite.
            ValueError: no row.
        """
        self._check_width(embeddings, "the embeddings")
        if not len(embeddings):
            raise ValueError("found no embedding, expected one or more")
        check_finite(embeddings, 0, "the embeddings")
        count = min(len(self.codebook.levels), self.embedding_width // self.codebook.per_item)
        slices = self.encoder(torch.from_numpy(embeddings).double())  # (n, K, E/K)
        slice_means = slices.mean(0)  # (K, E/K)
        mean = slice_means.mean(0)
        between = torch.linalg.svd(slice_means - mean, full_matrices=False).Vh[:-1]  # (K - 1, E/K)
        centred = (slices - slice_means).flatten(0, 1)  # (n * K, E/K)
        centred = centred - centred @ between.T @ between
        variance, directions = torch.linalg.eigh(torch.cov(centred.T))  # ascending
        variance, least = variance[-count:], ROUNDING * slices.square().mean()
        scale = torch.where(variance > least, std * variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt(), 0.0)
        weight = (directions[:, -count:] * scale).T.flip(0)  # (count, E/K), the widest direction first
        weight = F.pad(weight, (0, 0, 0, len(self.codebook.levels) - count))  # more levels than directions: zeros
        self.quantizer.project_in.weight.copy_(weight)
        self.quantizer.project_in.bias.copy_(-(weight @ mean))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: torch.device | str = "cpu", revision: str | None = None, token: str | None = None
    ) -> "AutoEncoder":
        """Load the tokenizer of a directory, or of a model OWNER/NAME of the Hub, in evaluation mode.

        InputError for what RecGPT.from_pretrained refuses.
        """
        return load_tokenizer(fetched(name, revision, token), device)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and tokenizer.safetensors into a directory, in the place of an earlier tokenizer or model.

        Beside a model's weights RecGPT.save_pretrained writes it.

        Raises:
            InputError: the directory holds other files, or a weight is not finite.
            DiskError: no space; what was there stays.
        """
        with pretrained_directory(directory) as folder:
            self.save_weights(folder)

    def save_weights(self, folder: Path) -> None:
        """Write config.json and tokenizer.safetensors into a folder, which is made if need be."""
        sizes = {"embedding_width": self.embedding_width, "whitens": self.whitens, **self.codebook.noted()}
        save_folder(folder, TOKENIZER, sizes, self.state_dict())

    def fingerprint(self) -> str:
        """Hash of `project_in` and of what else decides codes, sixteen hexadecimal digits.

        Codes of different tokenizers have different ones. What is as in the release is not counted.
        """
        digest = hashlib.sha256()
        for parameter in self.quantizer.project_in.parameters():
            digest.update(parameter.detach().cpu().float().numpy().tobytes())
        if self.whitens:
            digest.update(b"whitened")
        if (self.codebook, VERSION) != (PUBLISHED, 1):
            digest.update(f"{self.codebook.noted()}, {VERSION}".encode())
        return digest.hexdigest()[:16]


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> "AutoEncoder | RandomCodes":
    """Load the tokenizer of a checkpoint, in evaluation mode; InputError for a damaged file, or one without tokenizer.

    The checkpoint may be a directory of a tokenizer, or of a model that has one. The release's unused encoder weights
    are dropped. The name random:SEED stands for codes drawn at random (utils/random_codes.py).
    """
    if (drawn := RandomCodes.named(str(path))) is not None:
        return drawn
    folder = Path(path) / TOKENIZER_FOLDER
    path = folder if kind_of(folder) else Path(path)
    state = load_state(path)
    for name in [name for name in state if name.startswith("encoder.") and not path.is_dir()]:
        del state[name]
    if "quantizer.project_in.weight" not in state or state["quantizer.project_in.weight"].ndim != 2:
        raise InputError(f"{path} holds no tokenizer (quantizer.project_in is missing). Give a file of ae_trainer.py.")
    metadata = read_metadata(path)
    codebook = Codebook.read(agreed_config(state, metadata, path), path)
    width = state["quantizer.project_in.weight"].shape[1] * codebook.per_item
    check_width(width, path, codebook)
    if sum(value.numel() for value in state.values()) < width**2:  # before more is made than memory may hold
        raise InputError(f"{path} holds too few numbers for embeddings {width} wide. Give a file of ae_trainer.py.")
    if path.is_dir():
        noted = metadata["config"]
        for name, found in (("embedding_width", width), ("whitens", WHITENS in state)):
            if noted[name] != found:
                raise InputError(f"{path}: {name} is {shown(noted[name])} in config.json, and {found} of the weights.")
    tokenizer = AutoEncoder(width, WHITENS in state, codebook)
    fill_module(tokenizer, state, path)
    return tokenizer.to(device).eval()


def codebook_report(
    codes: np.ndarray, embeddings: np.ndarray | None = None, codebook: Codebook = PUBLISHED
) -> dict[str, Any]:
    """Measure how well codes (N, K) tell items apart; with embeddings (N, E), how well they tell distinct ones apart.

    Returns:
        codes_used, of so many codes; perplexity of the code distribution; collisions: items that share all their codes
        with another; distinct_share: fraction of distinct embeddings whose codes no other distinct embedding has.

    Raises:
        ValueError: a number that is not a code.
    """
    counts = np.bincount(numbers_below(codes.ravel(), codebook.size, "codes"), minlength=codebook.size)
    frequencies = counts[counts > 0] / max(1, counts.sum())
    report = {
        "items": len(codes),
        "codes": codebook.size,
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(np.exp(-(frequencies * np.log(frequencies)).sum())), 1),
        "collisions": sharing(codes),
    }
    if embeddings is not None and len(embeddings):
        rows = np.ascontiguousarray(embeddings).view(np.dtype((np.void, embeddings.shape[1] * embeddings.itemsize)))
        _, first = np.unique(rows.ravel(), return_index=True)
        report["distinct_share"] = round(1 - sharing(codes[first]) / len(first), 4)
    return report


def describe(report: dict[str, Any]) -> str:
    """Put a codebook report into one line."""
    line = "{items} items: {codes_used} of {codes} codes in use, perplexity {perplexity}, {collisions} in collisions"
    distinct = ", {distinct_share:.2%} of distinct embeddings have codes of their own"
    return (line + (distinct if "distinct_share" in report else "")).format(**report)


def load_training_rows(paths: list[str], whiten: bool = False, codebook: Codebook = PUBLISHED) -> np.ndarray:
    """Read the rows of some embedding files that are not all zero, i.e. of items with text: (n, E) float32.

    With `whiten`, those of each file are whitened by themselves.

    Raises:
        InputError: widths differ or do not fit, NaN, no rows, a file that is not the one of the JSON beside it, or one
            that has been whitened.
    """
    for path in paths:
        if is_whitened(Path(path)):
            raise InputError(f"{path} was whitened before. Give item_text_embeddings.npy of each data set.")
    matrices = [load_matrix(path, REMEDY) for path in paths]
    for path, matrix in zip(paths, matrices, strict=True):
        check_width(matrix.shape[1], path, codebook)
        if matrix.shape[1] != matrices[0].shape[1]:
            raise InputError(
                f"{path} is {matrix.shape[1]} wide, {paths[0]} is {matrices[0].shape[1]}: one encoder for all, please."
            )
    with np.errstate(over="ignore"):  # which the check finds
        copies = [np.array(matrix, dtype=np.float32) for matrix in matrices]
    for path, copied in zip(paths, copies, strict=True):
        check_finite(copied, 0, path)
        if whiten:
            copied[:] = Whitening.of(copied)(copied)
    rows = np.concatenate(copies)
    rows = rows[rows.any(axis=1)]
    if len(rows) < 2:
        raise InputError(f"{', '.join(paths)}: {len(rows)} rows with text, expected at least two. {REMEDY}")
    return rows


# Training


def train_epoch(
    model: AutoEncoder, optimizer: Optimizer, rows: np.ndarray, batch_size: int, seed: int, epoch: int
) -> float:
    """Train on all rows (n, E) float32 once; returns the mean L1 between embeddings and reconstructions.

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
    """The error that ends a training whose numbers are not finite any more."""
    return InputError(
        f"{found} in epoch {epoch}: training has diverged. Lower --lr, anew or, where a checkpoint was written, with "
        "--resume; it is kept."
    )


def train(args: argparse.Namespace, settings: TokenizerSettings, saved: dict[str, Any] | None) -> None:
    """Train, from the start or from what `read_training` has read, with a checkpoint at every tenth epoch and the last.

    Raises:
        InputError: the state was trained on other embeddings.
        KeyboardInterrupt: says how many epochs are kept.
    """
    folder, codebook = Path(args.output), settings.codebook
    rows = load_training_rows(args.embeddings, settings.whiten, codebook)
    run_metadata = {"settings": asdict(settings), "data": hashlib.blake2b(rows, digest_size=16).hexdigest()}
    model, optimizer = build(settings, rows, pick_device(args))
    first = 0
    if saved is not None:
        if saved["data"] != run_metadata["data"]:
            state = folder / STATE.format(codebook.name)
            raise InputError(
                f"{state} was trained on other embeddings than {', '.join(args.embeddings)} are now. Give "
                "what it was trained on, in the same order, or start without --resume."
            )
        first = restore(saved, model, optimizer, settings.lr)
    kept = epoch = first
    progress = tqdm(range(first, settings.epoch), initial=first, total=settings.epoch, desc="tokenizer", unit="epoch")
    try:
        for epoch in progress:
            loss = train_epoch(model, optimizer, rows, settings.batch_size, settings.seed, epoch)
            progress.set_postfix(l1=f"{loss:.5f}")
            if epoch % CHECKPOINT_EVERY == 0 or epoch == settings.epoch - 1:
                report = codebook_report(model.tokenize(rows), rows, codebook)
                metadata = {"epoch": epoch, "l1": loss, "tokenizer": model.fingerprint(), "report": report}
                metadata |= {"embedding_width": model.embedding_width, "data": args.embeddings}
                metadata |= {"config": codebook.noted()}
                path = folder / f"{NAME.format(codebook.name)}_ep{epoch}.pt"
                with hold_ctrl_c():
                    save_training(path, model, optimizer, metadata, run_metadata)
                    kept = epoch + 1
                progress.write(f"{path}: {describe(report)}")
    except KeyboardInterrupt as error:
        what = f"{kept} of {settings.epoch} epochs are kept in {folder}; go on with --resume"
        raise KeyboardInterrupt(f"interrupted in epoch {epoch}: {what if kept else 'nothing is kept'}") from error
    if first >= settings.epoch:
        print(f"nothing to do: {first} epochs are finished")


def build(settings: TokenizerSettings, rows: np.ndarray, device: torch.device) -> tuple[AutoEncoder, Optimizer]:
    """Make a tokenizer for rows (n, E) float32 as --init and --seed say, and its optimizer."""
    set_seed(settings.seed)
    model = AutoEncoder(rows.shape[1], settings.whiten, settings.codebook)
    if settings.init == "data":
        sample = np.random.default_rng(settings.seed).permutation(len(rows))[:START_SAMPLE]
        model.start_from(rows[np.sort(sample)], settings.init_deviation)
    model.to(device)
    return model, torch.optim.Adam(model.parameters(), lr=settings.lr)


# Checkpoints


def save_training(path: Path, model: AutoEncoder, optimizer: Optimizer, metadata: dict, run_metadata: dict) -> None:
    """Write a checkpoint: the weights at `path`, `metadata` as JSON beside them, and the state that --resume reads.

    The state is written last and holds weights, optimizer, number of the finished epoch, the random state of dropout,
    and `run_metadata`. At the first epoch a state of an earlier training goes: it must not stand beside these weights.
    """
    state_path = path.with_name(STATE.format(model.codebook.name))
    if metadata["epoch"] == 0:
        state_path.unlink(missing_ok=True)
    save_state(path, model.state_dict(), metadata)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": metadata["epoch"]}
    save_tensors(state_path, {**state, "random": torch.get_rng_state(), **run_metadata})


def read_training(path: Path) -> dict[str, Any]:
    """Read the state that `save_training` wrote; InputError if there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            saved = load_tensors(file)
        return {name: saved[name] for name in ("settings", "data", "model", "optimizer", "epoch", "random")}
    except FileNotFoundError:
        others = ", ".join(sorted(other.name for other in path.parent.glob(STATE.format("*"))))
        found = f" There is {others}: give its --levels and --codes, too." if others else " Start without --resume."
        raise InputError(f"--resume: {path} does not exist.{found}") from None
    except Exception as error:  # torch raises many types for damaged or refused files
        raise InputError(f"--resume: {path} is damaged ({reason(error)}). Start without --resume.") from error


def restore(saved: dict[str, Any], model: AutoEncoder, optimizer: Optimizer, lr: float) -> int:
    """Load weights, optimizer and random state from a saved state, but for `lr`; returns the epoch to begin at."""
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    for group in optimizer.param_groups:
        group["lr"] = lr
    return saved["epoch"] + 1


# The command line


def flags() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = parser(__doc__)
    made.add_argument("--embeddings", nargs="+", required=True, metavar="FILE", help=".npy matrices (items, width)")
    made.add_argument("--output", default="./vae_ckpt", help="folder for the checkpoints")
    add_settings(made, TokenizerSettings)
    made.add_argument(
        "--resume", action="store_true", help="go on from OUTPUT's last checkpoint, with its settings unless typed"
    )
    add_device_flags(made)
    return made


def parse(**defaults: Any) -> argparse.Namespace:
    """Parse the command line; `defaults` by flag stand in for what is not typed."""
    made = flags()
    made.set_defaults(**defaults)
    return made.parse_args()


def find_resumed(args: argparse.Namespace) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Read the state to resume from with --resume; its settings stand in for those that were not typed."""
    settings = settings_of(args)
    path = Path(args.output) / STATE.format(settings.codebook.name)
    check_writable(path)
    if not args.resume:
        if path.exists():
            print(
                f"{path} is of an earlier training: it, and checkpoints of the same names, will be replaced. To go on "
                "with it, stop and give --resume; to keep it, give another --output."
            )
        return args, None
    saved = read_training(path)
    earlier = {**asdict(TokenizerSettings()), **saved["settings"]}  # older ones do not have all
    args, changed = parse_resumed(parse, earlier, FIXED, path)
    print(f"going on from {path}, {saved['epoch'] + 1} of {args.epoch} epochs finished{changed}")
    return args, saved


def settings_of(args: argparse.Namespace) -> TokenizerSettings:
    """The settings that a parsed command line gives."""
    return TokenizerSettings(**{field.name: getattr(args, field.name) for field in fields(TokenizerSettings)})


def main() -> None:
    """Parse, find what to resume, keep other runs away, train."""
    args, saved = find_resumed(parse())
    settings = settings_of(args)
    lock = lock_folder(Path(args.output), "--output")
    try:
        train(args, settings, saved)
    finally:
        os.close(lock)


if __name__ == "__main__":
    run(main)
