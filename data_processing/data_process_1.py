"""Turn raw reviews and item metadata into user histories and item texts.

    python data_processing/data_process_1.py --reviews Baby_Products.jsonl --meta meta_Baby_Products.jsonl \\
        --output data/baby
    python data_processing/data_process_1.py --reviews r.jsonl.gz --meta m.jsonl.gz --output data/mine --test_share 0

Reads JSON lines, gzip-compressed or not, in the form of Amazon Reviews 2023: reviews with user_id, parent_asin and
timestamp, metadata with parent_asin and the text fields. Names such as
hf://datasets/McAuley-Lab/Amazon-Reviews-2023/raw/review_categories/Baby_Products.jsonl are fetched to data/raw first.
Writes to OUTPUT what make_dataset.py writes but the embeddings, which TextEncoder_batch.py makes: train.pkl, test.pkl,
cold_train.pkl and cold_test.pkl (dict user -> item ids in time order), test_times.pkl (seconds) and item_text_dict.pkl
(dict item id -> dict of text fields, of the items that have text), and dataset.json, which lists them with hashes.
Users keep their names; items are numbered from 0, and item_ids.jsonl has the names that they had.

Files may be larger than memory: DuckDB sorts them, within --memory, in a hidden file beside OUTPUT. A run that was
killed resumes with the tables that were finished.
"""

import glob
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import duckdb
import numpy as np
from tqdm import tqdm

from data_processing.parts.hub import RAW, local_file
from data_processing.parts.missing import NOTHING, is_missing, missing_in
from data_processing.parts.splits import (
    Histories,
    Parts,
    add_split_flags,
    draw_test,
    item_texts,
    load_rows,
    save_histories,
)
from data_processing.parts.tables import MEMORY, Tables, file_key, first_line, is_bad_file, workspace
from data_processing.parts.times import in_another_unit, units_per_second
from utils.cli import parser, positive_float, positive_int, run
from utils.datasets import DATA_SET
from utils.errors import InputError
from utils.files import read_jsonl, require_file, staged_set
from utils.pickles import save_dict

TEXT_FIELDS = ("main_category", "title", "description", "categories", "details")  # in the release's order
REMEDY = "Fetch it with data_processing/data_download.py --amazon CATEGORY."

REVIEWS = """
    SELECT row_number() OVER () AS line, user_id AS reviewer, parent_asin AS item, TRY_CAST(timestamp AS DOUBLE) AS time
    FROM read_json(?, format = 'newline_delimited',
                   columns = {user_id: 'VARCHAR', parent_asin: 'VARCHAR', timestamp: 'VARCHAR'})
"""
NO_REVIEW = f"{missing_in('reviewer')} OR {missing_in('item')} OR NOT coalesce(isfinite(time), false)"
REVIEWERS = "SELECT reviewer AS name, min(line) AS first, count(*) AS reviews FROM reviews GROUP BY reviewer"
USERS = "SELECT name, row_number() OVER (ORDER BY first) - 1 AS id FROM reviewers WHERE reviews >= ?"
EVENTS = """
    SELECT id AS user_id, item, time, row_number() OVER (ORDER BY id, time, line) AS position
    FROM reviews JOIN users ON reviewer = name
"""
ITEMS = "SELECT item AS name, row_number() OVER (ORDER BY min(position)) - 1 AS id FROM events GROUP BY item"
HISTORY_ROWS = """
    SELECT user_id::INTEGER AS user_id, id::INTEGER AS item, time
    FROM events JOIN items ON item = name ORDER BY position
"""
METADATA = f"""
    SELECT row_number() OVER () AS line, json->>'$.parent_asin' AS item,
           json_extract(json, {[f"$.{name}" for name in TEXT_FIELDS]}) AS fields
    FROM read_json_objects(?, format = 'newline_delimited')
"""
TEXTS = f"""
    SELECT id, fields FROM
        (SELECT id, fields FROM metadata JOIN items ON item = name
         QUALIFY row_number() OVER (PARTITION BY id ORDER BY line DESC) = 1)
    WHERE len(list_filter(fields, lambda field: NOT regexp_full_match(field::VARCHAR, '{NOTHING}'))) > 0
"""
ALL_ITEMS = "(SELECT item FROM reviews UNION SELECT item FROM metadata)"


def main() -> None:
    """Read reviews and metadata, number users and items, split the users, and write a data set directory."""
    flags = parser(__doc__)
    flags.add_argument("--reviews", required=True, metavar="FILE", help="reviews, .jsonl or .jsonl.gz, or hf://…")
    flags.add_argument("--meta", required=True, metavar="FILE", help="item metadata, likewise")
    flags.add_argument("--output", required=True, metavar="DIR", help="data set directory to write to")
    flags.add_argument("--min_interactions", type=positive_int, default=5, help="leave out users with fewer items")
    add_split_flags(flags)
    flags.add_argument("--memory", type=positive_float, default=MEMORY, help="GiB for DuckDB, before it uses the disk")
    args = flags.parse_args()

    reviews, meta = (require_file(local_file(name, RAW), REMEDY) for name in (args.reviews, args.meta))
    output = Path(args.output)
    job = {"reviews": file_key(reviews), "meta": file_key(meta), "min_interactions": args.min_interactions}
    with workspace(output, job, args.memory) as tables:
        histories = number_histories(tables, reviews, args.min_interactions)
        made = gather_texts(tables, meta)
        in_test = draw_test(len(histories.lengths), args.test_share, args.seed)
        with staged_set(output, DATA_SET) as staging:
            parts = Parts(*(np.where(chosen, histories.lengths, 0) for chosen in (~in_test, in_test)))
            save_histories(staging, tables, histories, parts, args.seed, last=False)
            save_dict(staging / "item_text_dict.pkl", tqdm(texts(tables), desc="texts", unit=" items", total=made))
        users, items = len(in_test), tables.count("items")
        all_users, all_items = tables.count("reviewers"), tables.count(ALL_ITEMS)
    print(
        f"{output}: {users - in_test.sum()} train users, {in_test.sum()} test users, {len(histories.items)} "
        f"interactions, {items} items, {items - made} of them without text"
    )
    if (users, items) != (all_users, all_items):
        print(
            f"  {all_users - users} of {all_users} users and {all_items - items} of {all_items} items, which nobody "
            f"else had, left out by --min_interactions {args.min_interactions}"
        )


def number_histories(tables: Tables, reviews: Path, min_interactions: int) -> Histories:
    """Collect the histories of the users with enough interactions; makes the tables `users` and `items`.

    Users are numbered by first appearance in the file, items by first appearance in the histories. Histories are in
    time order; equal times keep the file's order.

    Raises:
        InputError: a line without user_id, parent_asin or a numeric timestamp; no user with enough interactions;
            timestamps in two units, such as those of Amazon Reviews 2018 and 2023.
    """
    read_lines(tables, "reviews", REVIEWS, NO_REVIEW, reviews, check_review)
    largest = tables.value("SELECT max(abs(time)) FROM reviews") or 0
    low = tables.value(f"SELECT min(time) FROM reviews WHERE {in_another_unit('time', largest)}")
    if low is not None:
        raise InputError(
            f"{reviews}: timestamp {low:.0f} is in another unit than the largest, {largest:.0f}. Write all in one unit."
        )
    tables.make("reviewers", REVIEWERS)
    users = tables.make("users", USERS, min_interactions)
    if not users:
        raise InputError(f"{reviews}: no user has {min_interactions} or more reviews. Lower --min_interactions.")
    tables.make("events", EVENTS)
    tables.make("items", ITEMS)
    histories = load_rows(tables, HISTORY_ROWS, users)
    return histories._replace(times=histories.times / units_per_second(largest))


def gather_texts(tables: Tables, meta: Path) -> int:
    """Make the table `texts` of the text fields of all items, and return its length; an item's last line counts."""
    read_lines(tables, "metadata", METADATA, missing_in("item"), meta, check_metadata)
    return tables.make("texts", TEXTS)


def read_lines(tables: Tables, name: str, query: str, bad: str, path: Path, check: Callable) -> None:
    """Make a table of JSON lines; raise InputError with the number of a line that DuckDB refuses or that is `bad`."""
    print(f"reading {path}")
    try:
        tables.make(name, query, glob.escape(str(path)))  # DuckDB takes [, * and ? for a pattern
        reason = "a field is missing or of another type" if tables.count(f"{name} WHERE {bad}") else None
    except duckdb.Error as error:
        if not is_bad_file(error, path):
            raise
        reason = first_line(error)
    if reason:
        for line, record in read_jsonl(path, REMEDY):  # DuckDB does not count lines reliably
            check(record, f"{path}, line {line}")
        raise InputError(f"{path}: {reason}. Mend it, or fetch it again (data_download.py --amazon CATEGORY).")


def check_review(review: dict[str, Any], where: str) -> None:
    """Raise InputError, which begins with `where`, unless a review has a user, an item and a finite time."""
    for name in ("user_id", "parent_asin"):
        if is_missing(review.get(name)):
            raise InputError(f"{where}: no {name}, expected user_id, parent_asin and timestamp.")
    time = review.get("timestamp")
    try:
        finite = not isinstance(time, bool) and math.isfinite(float(time))
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise InputError(
            f"{where}: timestamp {time!r} is not a number; expected seconds or milliseconds. Mend or remove the line."
        )


def check_metadata(metadata: dict[str, Any], where: str) -> None:
    """Raise InputError, which begins with `where`, unless metadata name their item."""
    if is_missing(metadata.get("parent_asin")):
        raise InputError(f"{where}: no parent_asin, expected it and text fields ({', '.join(TEXT_FIELDS)}).")


def texts(tables: Tables) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (item id, text fields) in ascending order; fields are in the release's order, `details` a JSON string."""
    for item, fields in item_texts(tables, "texts", TEXT_FIELDS):
        if not isinstance(fields.get("details", ""), str):
            fields["details"] = json.dumps(fields["details"])
        yield item, fields


if __name__ == "__main__":
    run(main)
