"""The embedded sample: what is committed is what the generator makes, and is fit for training."""

from pathlib import Path

import numpy as np
import pytest

from data_processing.sample import make_sample
from data_processing.sample.words import DOMAINS
from utils.files import load_matrix, read_jsonl

SAMPLE = Path(make_sample.__file__).parents[2] / "data" / "sample"
REMEDY = "python data_processing/sample/make_sample.py makes it."


def committed(domain: str, name: str) -> list[dict]:
    return [record for _, record in read_jsonl(SAMPLE / domain / name, REMEDY)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_generator_makes_the_committed_files(domain):
    items, users = make_sample.make_domain(domain, seed=0)
    assert items == committed(domain, "items.jsonl.gz")
    assert users == committed(domain, "sequences.jsonl.gz")


def test_another_seed_makes_another_world():
    assert make_sample.make_domain("pets", seed=1)[0] != committed("pets", "items.jsonl.gz")


def test_equal_records_give_equal_bytes(tmp_path):
    records = [{"id": 0, "text": {"title": "Crème Brûlée Dish"}}]
    make_sample.save_jsonl(tmp_path / "one.jsonl.gz", records)
    make_sample.save_jsonl(tmp_path / "two.jsonl.gz", records)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()
    assert [record for _, record in read_jsonl(tmp_path / "one.jsonl.gz", REMEDY)] == records


def test_sample_is_small():
    sizes = [path.stat().st_size for domain in DOMAINS for path in (SAMPLE / domain).iterdir()]
    assert max(sizes) < 2**20
    assert sum(sizes) < 3 * 2**20


@pytest.mark.parametrize("domain", DOMAINS)
def test_items_are_distinct_and_numbered(domain):
    items = committed(domain, "items.jsonl.gz")
    assert [item["id"] for item in items] == list(range(len(items)))
    assert len({str(item["text"]) for item in items}) == len(items)
    for item in items:
        assert set(item["text"]) <= {"title", "description", "categories", "brand"}
        assert not set("{}") & set(str(item["text"])[1:-1])  # no template left unfilled


@pytest.mark.parametrize("domain", DOMAINS)
def test_histories(domain):
    count = len(committed(domain, "items.jsonl.gz"))
    users = committed(domain, "sequences.jsonl.gz")
    histories = [user["items"] for user in users]
    assert len({user["user"] for user in users}) == len(users)
    assert {0 <= item < count for history in histories for item in history} == {True}
    assert all(make_sample.SHORTEST <= len(history) <= make_sample.LONGEST for history in histories)
    assert 8 < np.mean([len(history) for history in histories]) < 10


@pytest.mark.parametrize("domain", DOMAINS)
def test_embeddings_are_unit_rows_of_these_items(domain):
    items = committed(domain, "items.jsonl.gz")
    embeddings = load_matrix(SAMPLE / domain / "embeddings.npy", REMEDY)
    assert embeddings.shape == (len(items), 384)
    assert embeddings.dtype == np.float16
    rows = np.asarray(embeddings, np.float32)
    assert np.isfinite(rows).all()
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 2e-3
    # Were the rows of another seed or order, the nearest item would seldom be of the same category.
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    categories = np.array([item["text"]["categories"][-1] for item in items])
    assert (categories[similarity.argmax(1)] == categories).mean() > 0.8


@pytest.mark.parametrize("domain", DOMAINS)
def test_next_items_follow_from_the_last(domain):
    categories = [item["text"]["categories"][-1] for item in committed(domain, "items.jsonl.gz")]
    histories = [user["items"] for user in committed(domain, "sequences.jsonl.gz")]
    near = [categories[history[-1]] in {categories[item] for item in history[-4:-1]} for history in histories]
    assert np.mean(near) > 0.6


def test_some_domains_repeat_and_some_hardly_do():
    repeated = {}
    for domain in DOMAINS:
        histories = [user["items"] for user in committed(domain, "sequences.jsonl.gz")]
        repeated[domain] = np.mean([history[-1] in history[:-1] for history in histories])
    assert 0.1 < repeated["pets"] < 0.2  # the zero-shot domain needs both kinds of target
    assert repeated["toys"] < 0.06


def test_readme_tells_the_counts():
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    for domain, world in DOMAINS.items():
        items, users = committed(domain, "items.jsonl.gz"), committed(domain, "sequences.jsonl.gz")
        purchases = sum(len(user["items"]) for user in users)
        assert f"| {domain} | {world.role} | {len(items)} | {len(users)} | {purchases} |" in readme
