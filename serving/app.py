"""The paths of the server, and what their requests and answers look like.

A path checks the form of a request and its size; what an id or a text field may be, the library says. All that looks
into the bundle goes through one of the two queues of serving/service.py.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serving.api_page import api_page
from serving.asked import MOST_CONDITIONS, Request
from serving.border import MOST_BYTES, Border, Json, add_handlers
from serving.recommender import Recommendation
from serving.rules import Scored, describe, rule_lists, search
from serving.service import Service
from serving.store import Item
from utils.errors import shown

MOST_LISTED = 1_000  # items in a list
MOST_ITEMS = 10_000  # in a history, or ids in a request
MOST_TEXTS, LONGEST_TEXT = 8, 10_000  # items of a history that are given by their texts, and their size as JSON
MOST_CHANGED = 256  # items in one change
LONGEST_WORDS = 200  # characters that are searched for
LONGEST_ID = 1_000  # characters of an id in an address
PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

# What is said of them in /openapi.json alone: the library checks ids, and says what is wrong in a better sentence.
IDS, TEXT = [{"type": "integer"}, {"type": "string"}], {"type": "object", "title": "Text fields"}
Id = Annotated[Any, WithJsonSchema({"anyOf": IDS})]
Entry = Annotated[Any, WithJsonSchema({"anyOf": [*IDS, TEXT]})]
Ids = Annotated[list[Id], Field(max_length=MOST_ITEMS)]
ItemIdOfAddress = Annotated[str, Query(alias="id", max_length=LONGEST_ID, examples=["B1"])]
Count = Annotated[int, Query(ge=1, le=MOST_LISTED)]


# Requests


class Form(BaseModel):
    """A body: types are taken as they are, and other fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Asked(Form):
    """A history, and what may be recommended after it."""

    history: Annotated[list[Entry], Field(max_length=MOST_ITEMS, examples=[["B1", "B2"]])]
    k: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 10
    exclude_history: bool = True
    exclude: Ids = []
    candidates: Ids | None = None
    explain: bool = False
    skip_unknown: bool = False
    filter: Annotated[list[str], Field(max_length=MOST_CONDITIONS)] = []

    @field_validator("history")
    @classmethod
    def check_texts(cls, history: list[Any]) -> list[Any]:
        """Texts are encoded, which takes far longer than an id."""
        texts = [entry for entry in history if isinstance(entry, dict)]
        if len(texts) > MOST_TEXTS:
            raise ValueError(f"at most {MOST_TEXTS} items may be given by their texts, found {len(texts)}")
        if any(size(text) > LONGEST_TEXT for text in texts):
            raise ValueError(f"the text fields of an item may have {LONGEST_TEXT} characters as JSON")
        return history


class AskedRules(Form):
    """A history, and how long the lists of the rules are to be."""

    history: Annotated[list[Entry], Field(max_length=MOST_ITEMS, examples=[["B1", "B2"]])]
    k: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 10
    check_texts = field_validator("history")(Asked.check_texts.__func__)


class Text(Form):
    """An item with its text fields."""

    id: Id
    fields: dict[str, Any]


class Texts(Form):
    """Items that are added or updated, all or none."""

    items: Annotated[
        list[Text], Field(max_length=MOST_CHANGED, examples=[[{"id": "N1", "fields": {"title": "Green pen"}}]])
    ]


class Removed(Form):
    """Items that are removed, all or none."""

    ids: Annotated[list[Id], Field(max_length=MOST_CHANGED, examples=[["N1"]])]


def size(text: dict[str, Any]) -> float:
    """Characters of text fields as JSON."""
    try:
        return len(json.dumps(text))
    except RecursionError:  # lists in lists in lists
        return float("inf")


# Answers


def listed(items: list[Recommendation]) -> Json:
    """Recommendations with the names of their parts."""
    return Json(
        {"items": [{**one._asdict(), "because": [reason._asdict() for reason in one.because]} for one in items]}
    )


def named(items: list[Item]) -> list[dict[str, Any]]:
    """Ids and titles."""
    return [{"id": item.id, "title": item.title} for item in items]


def scored(items: Scored) -> list[dict[str, Any]]:
    """Ids, titles and scores."""
    return [{"id": item.id, "title": item.title, "score": score} for item, score in items]


# Paths

router = APIRouter()
token = Security(HTTPBearer(auto_error=False, description="of who may write"))  # which serving/border.py compares
writes = APIRouter(prefix="/items", dependencies=[token])


def service_of(http: HttpRequest) -> Service:
    """The service that the app was made with."""
    return http.app.state.service


Served = Annotated[Service, Depends(service_of)]


async def known_item(item: ItemIdOfAddress, http: HttpRequest, service: Served) -> str:
    """The id of an item in an address; 404 for one that no item has."""
    if not await service.call(http, service.recommender.has_item, item):
        raise HTTPException(404, f"no item has the id {shown(item)}")
    return item


KnownItem = Annotated[str, Depends(known_item)]


@router.post("/recommend")
async def recommend(asked: Asked, http: HttpRequest, service: Served) -> Response:
    """What comes next: items with titles, probabilities and, with "explain", reasons; best first.

    An item of the history is an id, or an object of text fields: the title of an item, as {"title": "Blue pen"}, or
    texts of one that the catalog does not have. With "skip_unknown", ids that no item has are left out of the history.
    "filter" has conditions on fields, such as "price < 20".
    """
    request = Request(**{name: getattr(asked, name) for name in Asked.model_fields})
    return listed(await service.recommend(http, request))


@router.post("/rules")
async def rules(asked: AskedRules, http: HttpRequest, service: Served) -> Response:
    """What simple rules would recommend: nearest text, popularity, repeat; null of a rule without data."""
    found = await service.call(http, rule_lists, service.recommender, asked.history, asked.k)
    return Json({name: None if items is None else scored(items) for name, items in found.items()})


@router.get("/similar")
async def similar(item: KnownItem, http: HttpRequest, service: Served, k: Count = 10) -> Response:
    """The items whose texts are nearest to one's, with cosines, best first."""
    return Json({"items": scored(await service.call(http, service.recommender.similar_items, item, k))})


@router.get("/search")
async def search_titles(
    words: Annotated[str, Query(max_length=LONGEST_WORDS, examples=["pen"])],
    http: HttpRequest,
    service: Served,
    limit: Count = 20,
) -> Response:
    """Items by words: the one with this id, then titles that begin with the words, then titles that hold them."""
    return Json({"items": named(await service.call(http, search, service.recommender, words, limit))})


@router.get("/item")
async def item(item: KnownItem, http: HttpRequest, service: Served) -> Response:
    """One item: its title, text fields, codes and share of the log; null where the bundle has none."""
    found = await service.call(http, describe, service.recommender, item)
    return Json(found._asdict())


@writes.post("/add")
async def add(texts: Texts, http: HttpRequest, service: Served) -> Response:
    """Add items, all or none."""
    return await change(http, service, service.recommender.add_items, [(one.id, one.fields) for one in texts.items])


@writes.post("/update")
async def update(texts: Texts, http: HttpRequest, service: Served) -> Response:
    """Change text fields of items, all or none; fields that are not named stay."""
    return await change(http, service, service.recommender.update_items, [(one.id, one.fields) for one in texts.items])


@writes.post("/remove")
async def remove(removed: Removed, http: HttpRequest, service: Served) -> Response:
    """Remove items, all or none."""
    return await change(http, service, service.recommender.remove_items, removed.ids)


async def change(http: HttpRequest, service: Service, function: Any, items: list[Any]) -> Response:
    """Make a change, and say how many items it was about."""
    await service.call(http, function, items)
    return Json({"count": len(items)})


# The next two have no queue to wait in: they must answer when the queues are full. FastAPI runs them in a thread.


@router.get("/health")
def health(service: Served) -> Response:
    """Whether recommendations can be had, and from what."""
    view = service.recommender.view()
    bundle, change = view.bundle, view.change
    return Json(
        {
            "status": "ok",
            "items": change.count,
            "generation": change.generation,
            "rank_by": bundle.header["rank_by"],
            "title_field": bundle.title_field,
        }
    )


@router.get("/metrics")
def metrics(service: Served) -> Response:
    """Counters and times as Prometheus reads them."""
    return PlainTextResponse(service.text_of_metrics(), media_type="text/plain; version=0.0.4")


# The app


def make_app(service: Service, hosts: Collection[str] | None, address: str = "http://localhost:8000") -> Border:
    """The app around a service, for requests that name one of `hosts`; None: any. /docs writes of an `address`."""
    app = FastAPI(title="RecGPT", version="1", docs_url=None, redoc_url=None, max_body_size=MOST_BYTES)
    app.state.service = service
    app.include_router(router)
    app.include_router(writes)
    for path, name in PAGE_FILES.items():
        app.add_api_route(path, page_file(name), include_in_schema=False)
    schema = app.openapi()
    page = api_page(schema, address)
    app.add_api_route("/docs", lambda: HTMLResponse(page), include_in_schema=False)
    add_handlers(app)
    return Border(app, service, {*schema["paths"], *PAGE_FILES, "/docs", "/openapi.json"}, hosts)


def page_file(name: str) -> Any:
    """A function that answers with a file of the page, which is read now."""
    content, kind = (PAGE / name).read_bytes(), KINDS[Path(name).suffix]
    return lambda: Response(content, media_type=kind)
