"""The server: answers are the library's, faults are one sentence, and nothing is lost when there is too much of it."""

import contextlib
import http.client
import json
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
import uvicorn

from serving import border, bundles, server
from serving import bundle as bundle_script
from serving.app import MOST_ITEMS, MOST_TEXTS, make_app
from serving.batching import Batcher, Closed, Full
from serving.border import LOCAL, MOST_BYTES
from serving.recommender import Recommender
from serving.rules import rule_lists
from serving.service import TOKEN, Limits, Service
from serving.store import Item, ItemStore
from tests.conftest import ROOT
from tests.test_data_processing import HashEncoder
from tests.test_serving import TEXTLESS, call, name_of, shop  # noqa: F401 - the last is a fixture
from utils.cli import run
from utils.errors import InputError

SECRET = "a token of the tests"
JSON = {"Content-Type": "application/json"}
AUTHORIZED = {**JSON, "Authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module", autouse=True)
def encoder():
    with pytest.MonkeyPatch.context() as patched:
        for script in (bundles, bundle_script):
            patched.setattr(script, "load_encoder", lambda name, device: HashEncoder())
        yield


def make_bundle(shop, folder: Path) -> Path:  # noqa: F811
    flags = ["--dataset", shop / "data", "--rank_by", "blend", "--output", folder, "--encoder", "hash"]
    flags += ["--ckpt_path", shop / "codes.pt", "--vae_ckpt", shop / "whitens.pt", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patched:
        call(patched, bundle_script, *flags)
    return folder


@pytest.fixture(scope="module")
def bundle(shop, tmp_path_factory) -> Path:  # noqa: F811
    """A bundle that no test changes."""
    return make_bundle(shop, tmp_path_factory.mktemp("server") / "bundle")


class Answer(SimpleNamespace):
    """A status, headers, and what the body says."""

    def json(self):
        return json.loads(self.body)

    def sentence(self) -> str:
        """Of a fault: it must be one sentence, and nothing else."""
        said = self.json()
        assert list(said) == ["error"] and 10 < len(said["error"]) < 400, said
        assert "\n" not in said["error"] and "Traceback" not in said["error"]
        return said["error"]


class Running:
    """A server in this process, and who calls it."""

    def __init__(self, service: Service, port: int):
        self.service, self.port = service, port

    def call(self, method: str, path: str, body=None, headers=None, host: str = "127.0.0.1") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            body = json.dumps(body) if body is not None and not isinstance(body, (bytes, str)) else body
            connection.request(method, path, body, {"Host": f"{host}:{self.port}", **(headers or {})})
            answer = connection.getresponse()
            return Answer(status=answer.status, headers=answer.headers, body=answer.read().decode())

    def get(self, path: str, **asked) -> Answer:
        return self.call("GET", path + (f"?{urlencode(asked)}" if asked else ""))

    def post(self, path: str, body, headers=JSON) -> Answer:
        return self.call("POST", path, body, headers)

    def recommend(self, history, **others) -> Answer:
        return self.post("/recommend", {"history": history, **others})

    def counts(self) -> dict[tuple[str, str], int]:
        """Requests by path and status, as /metrics has them."""
        found = re.findall(r'^recgpt_requests_total\{path="(.*)",status="(\d+)"\} (\d+)$', self.metrics(), re.M)
        return {(path, status): int(count) for path, status, count in found}

    def metrics(self) -> str:
        return self.get("/metrics").body

    def wait_for(self, what) -> None:
        """Wait until something holds; at most ten seconds."""
        end = time.monotonic() + 10
        while not what():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def serving(recommender: Recommender, limits=Limits(), token: str | None = None) -> Iterator[Running]:  # noqa: B008
    service = Service(recommender, limits, token)
    config = uvicorn.Config(make_app(service, LOCAL), **server.SETTINGS, timeout_graceful_shutdown=10)
    running = uvicorn.Server(config)
    server.stop_gently(running, service)
    with server.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            found = Running(service, port)
            found.stop = lambda: running.handle_exit(signal.SIGTERM, None)
            yield found
        finally:
            running.handle_exit(signal.SIGTERM, None)
            thread.join()
            assert service.close(10)


@pytest.fixture(scope="module")
def shared(bundle) -> Iterator[Running]:
    """A server that several tests call, and none changes."""
    with serving(Recommender.open(bundle)) as found:
        yield found


@pytest.fixture
def held(bundle, monkeypatch) -> SimpleNamespace:
    """A recommender that computes when `go` is set, and says in `batches` what it was asked."""
    recommender = Recommender.open(bundle)
    held = SimpleNamespace(recommender=recommender, go=threading.Event(), batches=[])
    answer = recommender.answer

    def wait(requests):
        held.batches.append([request.history[0] for request in requests])
        assert held.go.wait(20)
        return answer(requests)

    monkeypatch.setattr(recommender, "answer", wait)
    return held


# What is answered


def test_answers_are_those_of_the_library(shared, bundle):
    recommender = Recommender.open(bundle)
    history = ["B001", {"title": "Thing 9 of another shop"}, "B005"]
    options = {"k": 4, "exclude": ["B011"], "candidates": [name_of(item) for item in range(8, 30)], "explain": True}
    (expected,) = recommender.recommend([history], **options)
    found = shared.recommend(history, **options)
    assert found.status == 200 and found.headers["content-type"] == "application/json"
    for one, same in zip(found.json()["items"], expected, strict=True):
        assert (one["id"], one["title"]) == same[:2] and one["probability"] == pytest.approx(same[2], rel=1e-4)
        assert [reason["title"] for reason in one["because"]] == [reason.title for reason in same.because]
    assert len(shared.recommend(["B001", "nothing"], skip_unknown=True, k=2).json()["items"]) == 2
    typed = shared.recommend(["B001", {"title": "thing 4"}], k=9, filter=["brand = 'Maker 3'", "title <> 'Thing 3'"])
    (expected,) = recommender.recommend([["B001", "B004"]], k=9, candidates=[name_of(n) for n in range(8, 80, 5)])
    assert [one["id"] for one in typed.json()["items"]] == [one.id for one in expected]
    similar = shared.get("/similar", id="B003", k=3).json()["items"]
    assert [(one["id"], one["score"]) for one in similar] == [
        (item.id, pytest.approx(score, rel=1e-4)) for item, score in recommender.similar_items("B003", 3)
    ]
    item = shared.get("/item", id="B004").json()
    assert item["fields"] == {"title": "Thing 4", "brand": "Maker 4"} and len(item["codes"]) == 4
    assert item["popularity"] == pytest.approx(float(recommender.view().domain.log.share[4]))
    health = shared.get("/health").json()
    assert health["status"] == "ok" and health["items"] == 79 and health["title_field"] == "title"


def test_rules_beside_the_recommendations(shared, bundle):
    recommender = Recommender.open(bundle)
    found = shared.post("/rules", {"history": ["B003", "B001", "B003"], "k": 3}).json()
    assert [(one["id"], one["score"]) for one in found["repeat"]] == [("B003", 2), ("B001", 1)]
    nearest = [item.id for item, _ in recommender.similar_items("B003", 5) if item.id != "B001"][:3]
    assert [one["id"] for one in found["nearest text"]] == nearest
    share = recommender.view().domain.log.share
    best = [name_of(item) for item in (-share).argsort(kind="stable") if item not in (1, 3, TEXTLESS)]
    assert [one["id"] for one in found["popularity"]] == best[:3]
    odd = {"no item has the id 'gone'": ["B001", "gone"], "B007": ["B007"], "of the history has no text": ["B001", {}]}
    for said, history in {**odd, "is empty": []}.items():
        assert said in shared.post("/rules", {"history": history}).sentence()
    typed = shared.post("/rules", {"history": [{"title": "Thing 3", "brand": "Another"}], "k": 2}).json()
    assert len(typed["nearest text"]) == 2 and typed["repeat"] == []
    typed = shared.post("/rules", {"history": [{"title": "Thing 3"}]}).json()
    assert [one["id"] for one in typed["repeat"]] == ["B003"]
    with pytest.raises(ValueError, match="k"):
        rule_lists(recommender, ["B001"], 0)


def test_titles_are_searched(shared, tmp_path):
    def found(words):
        return [one["id"] for one in shared.get("/search", words=words, limit=4).json()["items"]]

    assert found("b012")[:1] != ["B012"] and found("B012")[0] == "B012"  # ids are as the shop writes them
    assert found("  THING   5 ") == ["B005", "B050", "B051", "B052"] and found("5 thing")[:2] == ["B015", "B025"]
    assert found(" B001 ")[0] == "B001"
    assert found("") == found("  ") == found("no such") == found("%") == found("\ud83d".encode(errors="replace")) == []
    store = ItemStore.create(tmp_path, {})
    titles = ["Pen, blue", "Blue pen", "BLUE PENCIL", "50 % wool_", "Straße"]
    store.append([Item(number, title, {}) for number, title in enumerate(titles)], {}, [False] * 5)
    assert store.search("blue pen", 10) == [1, 2, 0] and store.search("blue pen", 2) == [1, 2]
    assert store.search("% WOOL_", 10) == [3] and store.search("strasse", 10) == [4] and not store.search("\ud83d", 9)
    with store.writing():
        store.remove([1])
    assert store.search("blue", 10) == [2, 0]


def test_docs_is_a_page_whose_commands_are_accepted(shared):
    page = shared.get("/docs").body
    assert "<script" not in page and "http://" not in page.replace("http://localhost:8000", "")
    commands = re.findall(r"<code>(curl .*?)</code>", page, re.S)
    assert len(commands) == len(shared.get("/openapi.json").json()["paths"]) == 10
    for command in commands:
        words = shlex.split(command.replace("&quot;", '"').replace("&#x27;", "'").replace("&amp;", "&"))
        path = words[1].removeprefix("http://localhost:8000").replace("B1", "B001")
        body = (
            words[words.index("--json") + 1].replace("B1", "B001").replace("B2", "B002") if "--json" in words else None
        )
        answer = shared.call("POST" if body else "GET", path, body, JSON)
        assert answer.status == (403 if path.startswith("/items/") else 200), command


def test_the_page_and_its_headers(shared):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = shared.get(path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    page = shared.get("/").body
    assert "//" not in page.replace("<!--", "") and not re.search(r"<script>|style=|\son\w+=", page)
    assert "innerHTML" not in shared.get("/page.js").body
    assert "access-control-allow-origin" not in shared.call("GET", "/health", None, {"Origin": "http://a.b"}).headers


# What is refused


HALF = "half a pair \ud83d"
ODD = [None, True, 1.5, "", " ", "nothing", HALF, "\x00", "B001\n", 2**70, -1, [], {}, {"title": ""}, {"title": HALF}]
ODD += [{"colour": "red"}, {"title": [["deep"]]}, {"title": float("nan")}, {"title": {"a": 1}}, "ß" * 300, "B001 ", [1]]


def odd_history(rng: random.Random):
    """Of known and unknown items, odd ones among them; of any length; or no history at all."""
    whole = [[], None, "B001", {"title": "x"}, 7, ["B001"], ["B001"] * 5000, ["B001"] * (MOST_ITEMS + 1), [HALF] * 50]
    whole += [[{"title": "x"}] * (MOST_TEXTS + 1), [{"title": "x" * 20_000}], {"0": "B001"}, [float("nan")]]
    if rng.random() < 0.15:
        return rng.choice(whole)
    known = [name_of(rng.randrange(80)) for _ in range(rng.randrange(1, 30))]
    return known + [rng.choice(ODD) for _ in range(rng.choice([0, 0, 1, 1, 2]))]


def test_a_thousand_odd_histories(bundle, capfd):
    """Each gets a list of the length that was asked for, or one sentence; and all of them are counted."""
    rng = random.Random(0)
    asked = [
        {"history": odd_history(rng), "k": rng.choice([1, 5, 79]), "skip_unknown": rng.random() < 0.5, "explain": True}
        for _ in range(1000)
    ]
    with serving(Recommender.open(bundle)) as running, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: running.post("/recommend", body), asked))
        counts = running.counts()
    for body, answer in zip(asked, answers, strict=True):
        if answer.status == 200:
            own = {entry.strip() for entry in body["history"] if isinstance(entry, str)}
            items = answer.json()["items"]
            may = 79 - len(own & {name_of(item) for item in range(80) if item != TEXTLESS})
            assert len(items) == min(body["k"], may)
            assert not own & {one["id"] for one in items}
        else:
            assert answer.status == 400 and answer.sentence(), answer
    statuses = [str(answer.status) for answer in answers]
    assert {status: statuses.count(status) for status in set(statuses)} == {
        status: count for (path, status), count in counts.items() if path == "/recommend"
    }
    assert 100 < statuses.count("200") < 900 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("", 400, "body"),
        ("[", 400, "not JSON"),
        ("[]", 400, "body"),
        ("7", 400, "body"),
        (b"\xff\xfe{", 400, "cannot be read as JSON"),
        ('{"history": ["B001"], "k": 1e400}', 400, "k: "),
        ('{"history": ["B001"], "k": NaN}', 400, "k: "),
        ('{"history": ["B001"], "k": 0}', 400, "k: "),
        ('{"history": ["B001"], "k": 1001}', 400, "k: "),
        ('{"history": ["B001"], "k": ' + "9" * 5000 + "}", 400, "cannot be read as JSON"),
        ('{"history": ["B001"], "K": 3}', 400, "K: "),
        ('{"history": ["B001"], "exclude": "B002"}', 400, "exclude: "),
        ('{"history": ["B001"], "candidates": []}', 400, "no candidate is left"),
        ('{"history": ["B001"], "explain": "yes"}', 400, "explain: "),
        ('{"history": ["B001"], "filter": "price < 2"}', 400, "filter: "),
        ('{"history": ["B001"], "filter": ["price < 2"]}', 400, "no column 'price'"),
        ('{"history": ["B001"], "filter": ["title = (SELECT 1)"]}', 400, "SUBQUERY has no place here"),
        ('{"history": ["B001"], "filter": ["repeat(title, 1000000000) > \'a\'"]}', 400, "repeat has no place here"),
        ('{"history": ["B001"], "filter": ["\\ud83d"]}', 400, "filter"),
        ('{"history": ["B001"], "\ud83d": 1}'.encode(errors="surrogatepass"), 400, "body: "),
        ('{"history": ["\\ud83d"], "\\ud83d": 1}', 400, "body: "),
        ('{"history": [], "history": ["B001"], "k": 2}', 200, None),  # the last of a name counts, as in other readers
        ('{"history":' + "[" * 100_000 + "]" * 100_000 + "}", 400, "cannot be read as JSON"),
        ('{"history": [{"title":' + "[" * 400 + "]" * 400 + "}]}", (200, 400), None),
        (b" " * (MOST_BYTES + 1), 413, "more than 1048576 bytes"),
    ],
)
def test_odd_bodies(shared, body, status, said):
    answer = shared.post("/recommend", body if isinstance(body, bytes) else body.encode())
    assert answer.status == status or answer.status in (status if isinstance(status, tuple) else ())
    assert said is None or said in answer.sentence()


def test_what_is_refused_before_it_is_read(shared):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
        answer = shared.post("/recommend", {"history": ["B001"]}, {"Content-Type": kind})
        assert answer.status == 415 and "Content-Type: application/json" in answer.sentence()
    for host in ("evil.example", "127.0.0.1.evil.example", "[", ""):
        assert shared.call("GET", "/health", host=host).status == 400
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert shared.call("GET", "/health", host=host).status == 200
    assert shared.get("/nothing").status == 404 and shared.get("/nothing").sentence()
    assert shared.call("PUT", "/recommend").status == 405 and shared.call("PUT", "/recommend").sentence()
    assert (
        shared.get("/similar", id="nothing").status == 404
        and "'nothing'" in shared.get("/item", id="nothing").sentence()
    )
    assert shared.get("/search").status == 400 and shared.get("/similar", id="B001", k=0).sentence()
    chunks = iter([b" " * 100_000] * 11 + [b"{}"])  # no length is told beforehand
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    connection.request("POST", "/recommend", chunks, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_a_body_that_does_not_go_on_is_given_up(shared, monkeypatch):
    monkeypatch.setattr(border, "BODY_SECONDS", 0.2)
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    connection.putrequest("POST", "/recommend")
    for header in (*JSON.items(), ("Content-Length", "100")):
        connection.putheader(*header)
    connection.endheaders(b'{"history"')
    answer = connection.getresponse()
    assert answer.status == 408 and b"did not go on" in answer.read()


def test_writes_need_the_token_of_the_environment(shop, tmp_path, capfd):  # noqa: F811
    recommender = Recommender.open(make_bundle(shop, tmp_path / "bundle"))
    added = {"items": [{"id": "N1", "fields": {"title": "Thing 5", "brand": "Maker 0"}}]}
    with serving(recommender) as running:
        for headers in (JSON, AUTHORIZED):
            answer = running.post("/items/add", added, headers)
            assert answer.status == 403 and TOKEN in answer.sentence()
    with serving(recommender, token=SECRET) as running:
        for wrong in ("", "Bearer", "Bearer ", "Bearer wrong", SECRET, f"Bearer {SECRET}x", "Bearer \xe9"):
            answer = running.post("/items/add", b"not even JSON", {**JSON, "Authorization": wrong})
            assert answer.status == 401 and TOKEN in answer.sentence()
        assert running.call("GET", "/items/add", None, AUTHORIZED).status == 405
        assert not recommender.has_item("N1")
        assert running.post("/items/add", added, AUTHORIZED).json() == {"count": 1}
        assert running.get("/similar", id="N1", k=1).json()["items"][0]["id"] == "B005"
        assert "N1" in [one["id"] for one in running.recommend(["B005"], candidates=["N1"]).json()["items"]]
        assert "already" in running.post("/items/add", added, AUTHORIZED).sentence()
        updated = {"items": [{"id": "N1", "fields": {"title": "Another"}}]}
        assert running.post("/items/update", updated, AUTHORIZED).json() == {"count": 1}
        assert running.get("/item", id="N1").json()["fields"] == {"title": "Another", "brand": "Maker 0"}
        assert "recgpt_generation 3" in running.metrics()
        odd = {"items": [{"id": "N2", "fields": {"title": HALF, "brand": [float("nan"), "\x00"]}}]}
        assert running.post("/items/add", odd, AUTHORIZED).json() == {"count": 1}
        assert running.get("/item", id="N2").json()["fields"]["brand"] == [None, "\x00"]
        assert running.recommend(["N1"], candidates=["N2"], explain=True).status == 200
        assert running.post("/items/remove", {"ids": ["N2"]}, AUTHORIZED).json() == {"count": 1}
        assert running.post("/items/remove", {"ids": ["N1"]}, AUTHORIZED).json() == {"count": 1}
        assert running.post("/items/remove", {"ids": ["N1"]}, AUTHORIZED).status == 400
        assert running.get("/item", id="N1").status == 404 and running.get("/health").json()["items"] == 79
    assert SECRET not in "".join(capfd.readouterr())


# Many at once


def test_what_arrives_together_is_computed_together(held):
    with serving(held.recommender, Limits(batch=4)) as running, ThreadPoolExecutor(8) as threads:
        first = threads.submit(running.recommend, ["B000"])
        running.wait_for(lambda: held.batches)
        others = [threads.submit(running.recommend, [name_of(item)]) for item in range(1, 7)]
        running.wait_for(lambda: len(running.service.asked) == 6)
        wrong = threads.submit(running.recommend, ["nothing"])
        running.wait_for(lambda: len(running.service.asked) == 7)
        assert "recgpt_queue_length 7" in running.metrics()
        held.go.set()
        for item, future in enumerate([first, *others]):
            (expected,) = Recommender.open(held.recommender.bundle.path.parent).recommend([[name_of(item)]])
            assert [one["id"] for one in future.result().json()["items"]] == [one.id for one in expected]
        assert wrong.result().status == 400
        assert [len(batch) for batch in held.batches] == [1, 4, 3] and "recgpt_batch_size_count 3" in running.metrics()


def test_where_the_queue_is_full_nothing_is_lost(held):
    with serving(held.recommender, Limits(batch=2, queue=3)) as running, ThreadPoolExecutor(16) as threads:
        first = threads.submit(running.recommend, ["B000"])
        running.wait_for(lambda: held.batches)
        others = [threads.submit(running.recommend, [name_of(item)]) for item in range(1, 13)]
        running.wait_for(lambda: sum(future.done() for future in others) == 9)
        assert running.get("/health").status == running.get("/search", words="thing").status == 200
        held.go.set()
        answers = [future.result() for future in [first, *others]]
        refused = [answer for answer in answers if answer.status == 503]
        assert len(refused) == 9 and all(answer.headers["retry-after"] for answer in refused)
        assert {answer.sentence() for answer in refused} == {"too many requests are waiting; try again"}
        assert all(len(answer.json()["items"]) == 10 for answer in answers if answer.status == 200)
        assert running.counts()["/recommend", "200"] == 4 and sum(map(len, held.batches)) == 4


def test_who_has_gone_is_not_computed_for(held):
    with serving(held.recommender) as running, ThreadPoolExecutor(4) as threads:
        first = threads.submit(running.recommend, ["B000"])
        running.wait_for(lambda: held.batches)
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("POST", "/recommend", '{"history": ["B001"]}', JSON)
        running.wait_for(lambda: len(running.service.asked) == 1)
        last = threads.submit(running.recommend, ["B002"])
        running.wait_for(lambda: len(running.service.asked) == 2)
        connection.close()
        running.wait_for(lambda: len(running.service.asked) == 1)
        held.go.set()
        assert first.result().status == last.result().status == 200
        assert held.batches == [["B000"], ["B002"]] and running.counts()["/recommend", "499"] == 1


def test_a_stop_answers_what_waits_and_takes_nothing_more(held):
    with serving(held.recommender) as running, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(running.recommend, [name_of(item)]) for item in range(5)]
        running.wait_for(lambda: held.batches and len(running.service.asked) + len(held.batches[0]) == 5)
        kept = http.client.HTTPConnection("127.0.0.1", running.port)
        kept.connect()
        running.stop()
        with contextlib.suppress(OSError, http.client.HTTPException):  # or it has closed that connection already
            kept.request("GET", "/health")
            assert kept.getresponse().status == 503
        time.sleep(0.3)
        with pytest.raises(OSError):
            running.get("/health")
        held.go.set()
        assert [future.result().status for future in asked] == [200] * 5


def test_sigterm_under_load_loses_nothing(bundle, tmp_path):
    """A process of its own: whoever is let in gets an answer, and the exit code is 0."""
    command = [sys.executable, "-m", "serving.server", str(bundle), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        running = Running(None, int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1]))
        statuses, refused = [], []

        def ask(client: int) -> None:
            for item in range(10_000):
                try:
                    statuses.append(running.recommend([name_of((client + item) % 80)]).status)
                except OSError:  # the door is closed
                    refused.append(client)
                    return

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
        for thread in threads:
            thread.start()
        running.wait_for(lambda: len(statuses) > 50)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and not errors, errors
    assert set(statuses) <= {200, 503} and len(refused) == 8
    assert f"stopped; {len(statuses)} requests were answered" in said


def test_a_fault_nobody_expected_is_logged_and_disturbs_no_other(held, capsys):
    answer = held.recommender.answer

    def stumble(requests):
        if any(request.history == ["B013"] for request in requests):
            raise RuntimeError("a secret of the server")
        return answer(requests)

    held.recommender.answer = stumble
    with serving(held.recommender) as running, ThreadPoolExecutor(8) as threads:
        first = threads.submit(running.recommend, ["B000"])
        running.wait_for(lambda: held.batches)
        others = [threads.submit(running.recommend, [name_of(item)]) for item in (12, 13, 14)]
        running.wait_for(lambda: len(running.service.asked) == 3)
        held.go.set()
        found = [future.result() for future in (first, *others)]
    assert [answer.status for answer in found] == [200, 200, 500, 200]
    assert "secret" not in found[2].sentence() and "a secret of the server" in capsys.readouterr().err


def test_a_bundle_that_is_damaged_meanwhile_is_one_sentence(shop, tmp_path):  # noqa: F811
    folder = make_bundle(shop, tmp_path / "bundle")
    with serving(Recommender.open(folder)) as running:
        header = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps({**header, "folder": "version-gone"}))
        assert "recgpt_queue_length 0" in running.metrics()
        for answer in (running.recommend(["B001"]), running.get("/health")):
            assert answer.status == 503 and "bundle.json is not as it was written" in answer.sentence()
        (folder / "bundle.json").write_text(json.dumps(header))
        assert running.recommend(["B001"]).status == running.get("/health").status == 200


# The queue by itself, and the command


def test_a_queue_answers_in_order_and_says_when_it_is_full_or_closed():
    go, batches = threading.Event(), []

    def compute(jobs):
        batches.append(list(jobs))
        go.wait(10)
        return [ValueError("odd") if job == 3 else 2 * job for job in jobs]

    queue = Batcher(compute, most=2, room=3)
    first = queue.submit(0)
    while not batches:
        time.sleep(0.001)
    others = [queue.submit(job) for job in (1, 2, 3)]
    with pytest.raises(Full):
        queue.submit(4)
    assert others[1].cancel() and len(queue) == 2
    others.append(queue.submit(4))
    assert not first.cancel()  # it has begun
    go.set()
    assert queue.close(10) and batches == [[0], [1, 3], [4]]
    assert (first.result(), others[0].result(), others[3].result()) == (0, 2, 8)
    with pytest.raises(ValueError, match="odd"):
        others[2].result()
    with pytest.raises(Closed):
        queue.submit(5)


def test_a_queue_whose_work_does_not_end_can_be_left():
    queue = Batcher(lambda jobs: time.sleep(1) or jobs, most=1, room=2)
    queue.submit(1)
    assert not queue.close(0.05)


def test_answers_are_not_held_back_by_the_kernel():
    with server.listen("localhost", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        accepted, _ = listening.accept()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()


def test_the_command_says_what_is_missing(bundle, monkeypatch, capsys):
    def refuse(*flags: object) -> str:
        monkeypatch.setattr(sys, "argv", ["server", str(bundle), *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            run(server.main)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be listened to" in refuse("--port", taken.getsockname()[1])
    assert "cannot be listened to" in refuse("--host", "192.0.2.1")
    assert "from 0 to 65535" in refuse("--port", 65536)
    for name in ("fastapi", "uvicorn"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            for module in ("serving.app", "serving.border", "serving.api_page"):
                without.delitem(sys.modules, module, raising=False)
            assert "pip install -r requirements-serving.txt" in refuse()
    with pytest.raises(InputError, match="does not exist"):
        Recommender.open(bundle / "none")
