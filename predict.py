"""Zero-shot and cold-start ranking metrics on a data set, beside other recommenders (docs/comparing.md).

    python predict.py --tf_layer 3 --test_batch_size 48 --dataset steam --ckpt_path ./ckpt/recgpt_layer_3_weight.pt
    python predict.py --dataset steam --ckpt_path ./ckpt/recgpt_layer_3_weight.pt --cold True
    python predict.py --dataset path/to/directory --ckpt_path ckpt/layer_3_epoch_4.pt --output lists.jsonl
    python predict.py --dataset my_shop --ckpt_path ckpt/layer_3_epoch_4.pt --exclude_history --compare A=lists.jsonl
    torchrun --nproc_per_node 8 predict.py --dataset steam --ckpt_path ckpt/layer_3_epoch_4.pt

--protocol corrected (default): exact search, no prediction depends on who shares the batch, and a target that ties with
other candidates counts with its expected rank, since nothing but ids orders them.
--protocol released: the published evaluation, to reproduce published numbers.

--search free takes the most likely codes without asking whether an item has them, and tells how often none has: what
the search within the catalog is worth.

--blend adds blends of texts, the log and RecGPT, and --output has the lists of the best informed. Their weights are in
DATASET/blend.json. Where that is missing, or made from other files, they are fitted to train.pkl and written there;
--blend fit fits them in any case, --blend FILE reads that file. Without train.pkl the weights of the program are used.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ae_trainer import DEFAULT_TOKENIZER
from model import Items, RecGPT
from serving.scoring import batches_of_equal_work, blend_origin, load_fitted_with, load_parts, scores_of_all
from utils import compare
from utils.blend import Blender
from utils.blend_files import make_blenders
from utils.checkpoint import ITEMS
from utils.cli import SWITCH, named_file, parser, positive_int, run
from utils.compare import BEST_BLEND, LOG_BLEND, NO_LOG_BLEND
from utils.data import Catalog, Sequences, make_batch
from utils.datasets import (
    HISTORIES,
    TestSet,
    dataset_folder,
    load_test,
)
from utils.errors import InputError
from utils.files import atomic_write, check_writable, fingerprint
from utils.metrics import Ranks, list_ranks, score_ranks
from utils.names import load_names
from utils.processes import ALONE, Place, joined_processes
from utils.report import Evaluation, Listed, Measured, report_path, write_report
from utils.rows import about_files, about_model, about_program
from utils.scores import Statistics, distinct_items
from utils.search import (
    SCAN_USERS,
    ItemSearch,
    TopK,
    beam_search,
    exact_search,
    free_search,
    places_of,
    rank_found,
    rank_targets,
    search_and_rank,
)
from utils.Trie import Trie
from utils.util import add_device_flags, append_results, pick_device
from utils.whitening import text_rows

DEFAULT_MODEL = "./ckpt/recgpt_layer_3_weight.pt"


def parse() -> argparse.Namespace:
    """The command line."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", default="yelp", help="data/test/NAME, or a data set directory")
    flags.add_argument("--ckpt_path", default=DEFAULT_MODEL, help="model weights, or zip parts of them")
    flags.add_argument("--vae_ckpt", default=DEFAULT_TOKENIZER, help="tokenizer weights")
    flags.add_argument("--tf_layer", type=positive_int, help="transformer layers, read from the checkpoint")
    flags.add_argument("--test_batch_size", type=positive_int, default=96, help="users per batch")
    flags.add_argument("--cold", **SWITCH, help="users of cold_test.pkl, who have one to three items")
    flags.add_argument("--protocol", choices=tuple(PROTOCOLS), default="corrected", help="see above")
    flags.add_argument("--search", choices=tuple(SEARCHES), help="exact for corrected, beam for released")
    flags.add_argument("--topk", type=positive_int, nargs="+", default=[1, 3, 5], help="k of Hit@k and NDCG@k")
    flags.add_argument("--seed", help=argparse.SUPPRESS)  # of older commands: prediction draws nothing
    flags.add_argument("--drop_short", action="store_true", help="leave out users with fewer than two items")
    flags.add_argument("--results", metavar="FILE", help="append one JSON object per result")
    flags.add_argument("--output", metavar="FILE.jsonl", help="write each user's items, scores, target and its rank")
    flags.add_argument("--with_titles", action="store_true", help="write ids and titles of the items there, too")
    flags.add_argument("--per_user", metavar="FILE.npz", help="write each user's NDCG and rank by each method")
    flags.add_argument("--report", metavar="DIR", help="write DIR/report.html, a page with all results and examples")
    flags.add_argument("--exclude_history", action="store_true", help="recommend nothing that is in the user's history")
    flags.add_argument(
        "--compare", type=named_file, nargs="+", default=[], metavar="NAME=FILE", help="lists like those of --output"
    )
    flags.add_argument("--blend", nargs="?", const="auto", metavar="fit|FILE", help="rank by blends, too: see above")
    add_device_flags(flags)
    args = flags.parse_args()
    args.search = args.search or PROTOCOLS[args.protocol].search
    args.topk = sorted(set(args.topk))
    for flag, given in (("--exclude_history", args.exclude_history), ("--blend", args.blend)):
        if given and (args.search, args.protocol) != ("exact", "corrected"):
            raise InputError(f"{flag} needs exact search: leave out --search {args.search} and --protocol released.")
    if args.search == "free" and args.output:
        raise InputError("--output lists items, and --search free also finds codes of none. Leave one of them out.")
    if args.with_titles and not args.output:
        raise InputError("--with_titles says what the items of --output are called. Give --output, too.")
    for path in filter(None, (args.output, args.results, args.per_user, report_path(args.report))):
        check_writable(path)
    return args


def main() -> None:
    """Parse, join the processes that share the work, and evaluate."""
    args = parse()
    with joined_processes(args) as place:
        evaluate(args, place)


def evaluate(args: argparse.Namespace, place: Place) -> None:
    """Load, rank, compare, report; the first process compares and reports."""
    protocol = PROTOCOLS[args.protocol]
    test, model, catalog, candidates, made_with, fitted_with, about = load(args, protocol)
    folder, named = test.embeddings_path.parent, args.with_titles or args.report
    names = load_names(folder, len(catalog), needed=args.with_titles) if named else None
    length = min(max(args.topk), len(catalog))  # of the lists: no search finds more items
    places = max(args.topk) if args.search == "free" else length  # which finds codes of no item, too
    histories, targets = test.sequences.split_targets()
    read = histories.last(model.config.window - 1)
    is_candidate = np.isin(np.arange(len(catalog)), candidates)
    left_out = distinct_items(histories, is_candidate) if args.exclude_history else None
    find, scores_of = searches(args, model, catalog, candidates, places, targets, left_out)
    known = Statistics.of(text_rows(test.embeddings), test.log)
    others = compare.methods_of(test, is_candidate, known, args.compare)
    blends = {}
    if args.blend:
        fitted_to = partial(scores_of_all, fitted_with, catalog, args.test_batch_size)
        blended = (candidates, catalog.codes, made_with, fitted_to)
        how = "auto" if place.rank and args.blend == "fit" else args.blend  # the first has fitted it
        make = partial(make_blenders, test, known, *blended, how, args.exclude_history)
        blends = place.first_alone(make)
        known_needs = ((NO_LOG_BLEND, compare.NOTHING), (LOG_BLEND, compare.LOG))
        others |= {
            name: compare.Method(needs, blends[name].scorer, is_candidate)
            for name, needs in known_needs
            if name in blends
        }
        if BEST_BLEND in blends:
            find = BlendSearch(find, scores_of, blends[BEST_BLEND], histories, targets, length)

    started = time.perf_counter()
    batches = itertools.islice(protocol.batches(read.lengths, args.test_batch_size), place.rank, None, place.count)
    columns = recommend(model, read, catalog, find, batches, protocol.left_padded, place)
    if columns is None:  # the first process has them
        return
    found = Found(*columns[:4])
    seconds = time.perf_counter() - started
    print(f"{len(targets)} users in {seconds:.1f} s ({len(targets) / seconds:.1f} users/s)")
    ranks = compare.rank_methods(others, histories, targets, length, protocol.ids_decide, args.exclude_history)
    ranks = {compare.MODEL: Ranks(found.above, found.tied), **ranks}
    lists, needs = TopK(found.items, found.scores), {name: method.needs for name, method in others.items()}
    covered, by = {compare.MODEL: found.items}, compare.MODEL
    if BEST_BLEND in blends:
        lists, ranks[BEST_BLEND], needs[BEST_BLEND] = TopK(*columns[4:6]), Ranks(*columns[6:]), compare.LOG
        covered[BEST_BLEND], by = lists.items, BEST_BLEND
    elif blends:
        lists, by = blends[NO_LOG_BLEND].search(histories, length), NO_LOG_BLEND

    groups = compare.user_groups(histories, targets, test.last_times, args.exclude_history)
    pairs = [(BEST_BLEND, LOG_BLEND)] if BEST_BLEND in blends else []
    results = compare.measure(ranks, needs, groups, args.topk, pairs)
    if args.search == "free":
        add_invalid_shares(results, found, groups, args.topk)
    if args.output:
        called = names if args.with_titles else None
        compare.write_lists(args.output, test.sequences.users, shortened(lists), (targets, ranks[by]), called)
    if args.per_user:
        write_users(args.per_user, test.sequences.users, ranks, args.topk, groups)
        hashes = {**about.get("fingerprints", {}), "per_user": fingerprint(args.per_user)}
        about |= {"per_user": args.per_user, "fingerprints": hashes}
    told = ("dataset", "cold", "protocol", "search", "exclude_history", "ckpt_path", "vae_ckpt")
    setting = {name: getattr(args, name) for name in told}
    compare.report(results, args.topk)
    for name, listed in covered.items():
        compare.report_coverage(name, compare.coverage(listed.numpy()), len(candidates), length)
    append_results(args.results, ({**setting, **result, **about} for result in results))
    shown = ({**setting, "predicts": model.config.predicts}, test, catalog.codes, catalog.codebook)
    measured, listed = (
        Measured(ranks, needs, groups, args.topk, results),
        Listed(covered, len(candidates), by, lists.items),
    )
    write_report(args.report, Evaluation(*shown, measured, listed), names)
    ours = results[0]
    print(", ".join(f"{name}@{k} = {ours[f'{name}@{k}']:.4f}" for k in args.topk for name in ("hit", "ndcg")))


class Loaded(NamedTuple):
    """What prediction reads."""

    test: TestSet
    model: RecGPT
    catalog: Catalog
    candidates: np.ndarray  # (M,) int64, ascending, items that may be recommended
    made_with: dict[str, str]  # with --blend: hashes of the weights and the tokenizer
    fitted_with: RecGPT  # the model with which a blend is fitted
    about: dict[str, Any]  # of all this and the program, for --results; empty without it


def load(args: argparse.Namespace, protocol: "Protocol") -> Loaded:
    """Load data set, tokenizer and checkpoint, check that they fit each other, and tokenize the catalog."""
    test = load_test(dataset_folder(args.dataset), args.cold, args.drop_short)
    device = pick_device(args)
    model, metadata, tokenizer, catalog = load_parts(
        args.ckpt_path, args.vae_ckpt, test.embeddings_path, test.embeddings, device, args.tf_layer
    )
    if model.config.predicts == ITEMS and (args.search, args.protocol) != ("exact", "corrected"):
        raise InputError(
            f"{args.ckpt_path} predicts items and not codes, and --search beam, --search free and --protocol released "
            "are of codes. Leave them out."
        )
    candidates = protocol.candidates(catalog.codes, test.embeddings)
    fitted_with, made_with = model, {}
    if args.blend:
        log = test.embeddings_path.parent / HISTORIES
        fitted_with = load_fitted_with(metadata, args.ckpt_path, model.config.predicts, device, log) or model
        made_with = blend_origin(model, fitted_with, tokenizer)
    about = {}
    if args.results:  # all weights are hashed for it, and git is asked
        about = {"users_of_data": len(test.sequences), "items": len(catalog)}
        about |= about_program("predict.py", args, device) | about_model(model.config.noted(), metadata)
        hashes = {"weights": model.fingerprint(), "tokenizer": tokenizer.fingerprint()}
        files = ("cold_test.pkl" if args.cold else "test.pkl", HISTORIES, test.embeddings_path.name)
        about["fingerprints"] = hashes | about_files(test.embeddings_path.parent, files)
    return Loaded(test, model, catalog, candidates, made_with, fitted_with, about)


def items_with_text(codes: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Ids (M,) int64, ascending, of the items whose embedding (N, E) is not zero; InputError if there is none."""
    candidates = np.flatnonzero(np.any(embeddings, axis=1))
    if len(candidates) < len(codes):
        print(f"{len(codes) - len(candidates)} of {len(codes)} items have no text (zero embedding): not recommended")
    if not len(candidates):
        raise InputError("no item of the catalog has text (all embeddings are zero). Encode the texts again.")
    return candidates


def highest_ids(codes: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Ids (M,) int64, ascending: of the items that share all codes of (N, K) the one with the highest id."""
    _, last = np.unique(codes[::-1], axis=0, return_index=True)
    return np.sort(len(codes) - 1 - last)


def batches_in_file_order(lengths: np.ndarray, users: int) -> Iterator[np.ndarray]:
    """Rows of each batch: `users` of the histories at a time, as they come."""
    yield from np.split(np.arange(len(lengths)), range(users, len(lengths), users))


class Protocol(NamedTuple):
    """What --protocol decides."""

    search: str  # --search where it is not given
    left_padded: bool  # positions count as the published program's do, which depend on who shares the batch
    batches: Callable[[np.ndarray, int], Iterator[np.ndarray]]  # lengths, users per batch -> rows of each batch
    candidates: Callable[[np.ndarray, np.ndarray], np.ndarray]  # codes, embeddings -> items that may be recommended
    ids_decide: bool  # which of equal scores ranks first; otherwise a target has the mean rank of its ties


PROTOCOLS = {
    "corrected": Protocol("exact", False, batches_of_equal_work, items_with_text, ids_decide=False),
    "released": Protocol("beam", True, batches_in_file_order, highest_ids, ids_decide=True),
}


def print_ties(trie: Trie) -> None:
    """Print how many candidates share all their codes with another, and so have the same score for everyone."""
    sizes = trie.starts[-1].diff()
    sharing = int(sizes[sizes > 1].sum())
    if sharing:
        print(f"{sharing} of {len(trie)} items share their codes with another: a target among them has its mean rank")


# By the names of --search: how lists are found, and how targets are ranked in them.
SEARCHES = {
    "exact": (exact_search, rank_targets),
    "beam": (beam_search, rank_found),
    "free": (free_search, rank_found),
}


class Found(NamedTuple):
    """What prediction finds for B users: a list each, and where the target stands."""

    items: Tensor  # (B, k) int64, as in TopK
    scores: Tensor  # (B, k) float32
    above: Tensor  # (B,) int64, as in Ranks
    tied: Tensor  # (B,) int64


def make_search(
    name: str,
    trie: Trie,
    k: int,
    codes: np.ndarray,
    targets: np.ndarray,
    ids_decide: bool,
    left_out: Sequences | None = None,
) -> Callable[[Tensor, np.ndarray], Found]:
    """The function that finds, from logits (B, K, V) and users' rows (B,), the k best candidates and the target's rank.

    `trie` holds the candidates, `codes` (N, K) are those of all items, `targets` (U,) the item ids of all users,
    `left_out` the candidates that are none for a user, once each.
    """
    search, rank = SEARCHES[name]
    is_candidate = torch.isin(torch.from_numpy(targets), trie.items.cpu())

    def find(logits: Tensor, rows: np.ndarray) -> Found:
        without = None if left_out is None else left_out.select(rows)
        if ids_decide:
            top = search(logits, trie, k)
            return Found(*top, *list_ranks(top.items, torch.from_numpy(targets[rows]).to(logits.device)))
        wanted = torch.from_numpy(codes[targets[rows]].astype(np.int64)).to(logits.device)
        top, ranks = search_and_rank(logits, trie, k, wanted, codes, without, search, rank)
        return Found(*top, ranks.above, ranks.tied * is_candidate[rows].to(logits.device))

    return find


def searches(
    args: argparse.Namespace,
    model: RecGPT,
    catalog: Catalog,
    candidates: np.ndarray,
    k: int,
    targets: np.ndarray,
    left_out: Sequences | None,
) -> tuple[Callable[[Tensor, np.ndarray], Found], Callable[[Tensor], Tensor]]:
    """The function of `make_search` for what the model predicts, and one that makes of that what a blend reads."""
    if model.config.predicts == ITEMS:
        search = model.item_search(Items(catalog, candidates).to(next(model.parameters()).device), k)
        return make_item_search(search, targets, left_out), search.scores
    trie, protocol = Trie(catalog.codes[candidates], candidates, catalog.codebook), PROTOCOLS[args.protocol]
    trie = trie.to(next(model.parameters()).device)
    if not protocol.ids_decide:
        print_ties(trie)
    find = make_search(args.search, trie, k, catalog.codes, targets, protocol.ids_decide, left_out)
    return find, partial(torch.log_softmax, dim=-1)


def make_item_search(
    search: ItemSearch, targets: np.ndarray, left_out: Sequences | None = None
) -> Callable[[Tensor, np.ndarray], Found]:
    """As `make_search`, from queries (B, D) of a model that predicts items."""

    def find(queries: Tensor, rows: np.ndarray) -> Found:
        wanted = torch.from_numpy(targets[rows]).to(queries.device)
        top, ranks = search.find(queries, wanted, None if left_out is None else left_out.select(rows))
        return Found(*top, *ranks)

    return find


@torch.inference_mode()
def recommend(
    model: RecGPT,
    histories: Sequences,
    catalog: Catalog,
    find: Callable[[Tensor, np.ndarray], Found],
    batches: Iterable[np.ndarray],
    left_padded: bool = False,
    place: Place = ALONE,
) -> list[Tensor] | None:
    """Predict every user's next item: what `find` (see `make_search`) finds, on the CPU, in the order of `histories`.

    Histories come without their targets and fit the window; `batches` are rows of them, each in one batch. Where
    several processes share the batches, the first gets what all have found, and the others None.

    Raises:
        InputError: what the model says is not finite.
    """
    device = next(model.parameters()).device
    found, order = [], []
    total = len(histories) // place.count
    with tqdm(total=total, unit="user", desc="predict", mininterval=1.0, disable=place.rank > 0) as progress:
        for rows in batches:
            batch = make_batch(histories.select(rows), catalog, left_padded).to(device)
            said = model.next_item(batch)
            if not torch.isfinite(said).all():
                raise InputError("the model's logits are not finite: its weights are damaged. Use another checkpoint.")
            found.append([column.cpu() for column in find(said, rows)])
            order.append(rows)
            progress.update(len(rows))
    shares = place.gathered((order, found))
    if shares is None:
        return None
    order = torch.from_numpy(np.argsort(np.concatenate([rows for share, _ in shares for rows in share])))
    found = [columns for _, share in shares for columns in share]
    return [torch.cat(column)[order] for column in zip(*found, strict=True)]


class BlendSearch:
    """A search as of `make_search` that also finds lists and ranks by a blend, from the same predictions."""

    def __init__(
        self,
        find: Callable[[Tensor, np.ndarray], Found],
        network: Callable[[Tensor], Tensor],
        blender: Blender,
        histories: Sequences,
        targets: np.ndarray,
        k: int,
    ):
        """`histories` and `targets` (U,) are those of all users, `k` is the length of the lists.

        `network` makes of the model's predictions for a few users what the blender reads.
        """
        self.find, self.network, self.blender, self.histories = find, network, blender, histories
        self.places, self.k = places_of(torch.from_numpy(targets), blender.items), k

    def __call__(self, predicted: Tensor, rows: np.ndarray) -> tuple[Tensor, ...]:
        """What `find` finds, and then the blend's items, scores and ranks, as in Found."""
        parts = []
        for start in range(0, len(rows), SCAN_USERS):  # which bounds memory
            users, part = rows[start : start + SCAN_USERS], self.network(predicted[start : start + SCAN_USERS]).cpu()
            scores, top = self.blender.scores_and_top(self.histories.select(users), self.k, part)
            parts.append((*top, *score_ranks(scores, self.places[users])))
        return (*self.find(predicted, rows), *(torch.cat(column) for column in zip(*parts, strict=True)))


def shortened(lists: TopK) -> Iterator[tuple[list[int], list[float]]]:
    """The items and scores of each user's list, without the places where the search found nothing."""
    for items, scores in zip(lists.items.tolist(), lists.scores.tolist(), strict=True):
        count = sum(item >= 0 for item in items)
        yield items[:count], scores[:count]


def add_invalid_shares(
    results: list[dict[str, Any]], found: Found, groups: dict[str, np.ndarray], topk: list[int]
) -> None:
    """Add to the model's results, and print, the share of places that codes of no item take in lists of free search."""
    invalid = ((found.items < 0) & (found.scores > -torch.inf)).numpy()  # (U, k)
    for result in results:
        if result["method"] == compare.MODEL and result["users"]:
            rows = invalid[groups[result["group"]]]
            result |= {f"invalid@{k}": round(float(rows[:, :k].mean()), 6) for k in topk}
    told = ", ".join(f"{invalid[:, :k].mean():.1%} of the first {k}" for k in topk)
    print(f"codes that no item has take {told} places of the lists")


def write_users(
    path: str, users: np.ndarray, ranks: dict[str, Ranks], topk: list[int], groups: dict[str, np.ndarray]
) -> None:
    """Write --per_user, with which the results of two runs on the same users can be compared in pairs.

    The file has arrays (U,) in the order of the data set: the users; for each method NDCG at the largest k, and how
    many candidates stand above the target and tie with it, as in `Ranks`; and for each group who belongs to it.
    """
    arrays = {"users": users if users.dtype.kind in "iu" else users.astype(str)}
    arrays |= {f"ndcg: {name}": values for name, values in compare.user_gains(ranks, topk).items()}
    arrays |= {f"{side}: {name}": getattr(found, side) for name, found in ranks.items() for side in Ranks._fields}
    arrays |= {f"group: {name}": members for name, members in groups.items()}
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    run(main)
