"""The model card: a README.md with the front matter that the Hugging Face Hub reads, and what is known of a model."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.checkpoint import CODES, ITEMS
from utils.errors import InputError, shown
from utils.files import read_json

NOT_GIVEN = "Not given by whoever wrote these weights."
ABOUT = {
    CODES: "It predicts the codes of the next item, and a search finds the items of a catalog that fit them best.",
    ITEMS: "It scores the items of a catalog, each by its codes and the embedding of its text.",
}
LIMITS = (
    "It reads the last {read} items of a history, and knows of an item only the embedding of its text, {width} wide. "
    "Embeddings of another encoder of this width are taken without a warning, and give lists that mean nothing.",
    "Models that were pre-trained with this program were behind rules that need no training on catalogs that they had "
    "not seen (docs/results.md). Compare on your own data with predict.py before you rely on it.",
)
TEMPLATE = """# RecGPT

This model recommends the next item of a history. A tokenizer turns the embedding of each item's text into {codes}
codes, and GPT-2 reads a history as {read}.
{about}

## Sizes

| | |
|---|---|
{sizes}

- Sentence encoder of the item texts: {encoder}
- Tokenizer: {tokenizer}

## Trained on

{data}

## Metrics

{metrics}

## Limits

{limits}

## How to load it

In the folder of the program:

```python
from ae_trainer import AutoEncoder
from model import RecGPT

model, tokenizer = RecGPT.from_pretrained("{name}"), AutoEncoder.from_pretrained("{name}")
```

docs/serving.md of the program says how to go on from there to lists of recommendations.
"""


@dataclass(frozen=True)
class Card:
    """What only those who trained a model can say of it; ValueError for other types."""

    data: str = ""  # what it was trained on
    metrics: dict[str, float] = field(default_factory=dict)  # by name, which says on what
    limits: str = ""
    license: str = "mit"  # of the weights, as the Hub names licences

    def __post_init__(self) -> None:
        for name in ("data", "limits", "license"):
            if type(getattr(self, name)) is not str:
                raise ValueError(f"card: {name!r} is {shown(getattr(self, name))}, expected a text")
        if not isinstance(self.metrics, dict):
            raise ValueError(f"card: 'metrics' is {shown(self.metrics)}, expected names with numbers")
        for name, value in self.metrics.items():
            if type(name) is not str or type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"card: metric {shown(name)} is {shown(value)}, expected a finite number")

    @classmethod
    def read(cls, path: str | Path) -> "Card":
        """Read a card from a JSON object of these fields; InputError for a damaged file or other fields."""
        found, known = read_json(path), [one.name for one in fields(cls)]
        unknown = [name for name in found if name not in known]
        if unknown:
            raise InputError(f"{path}: {shown(unknown[0])} is no part of a card. It has {', '.join(known)}.")
        try:
            return cls(**found)
        except ValueError as error:
            raise InputError(f"{path}: {error}.") from error


def model_card(name: str, sizes: dict[str, Any], origin: dict[str, Any], has_tokenizer: bool, card: Card) -> str:
    """Write the card of a model that is loaded as `name`.

    `sizes` are those of RecGPTConfig and "parameters", `origin` is what config.json keeps of a checkpoint's JSON.
    """
    from huggingface_hub import ModelCardData

    about = ModelCardData(
        library_name="recgpt",
        license=card.license,
        pipeline_tag="other",  # the Hub has no tag for recommendation among its tasks
        tags=["recgpt", "recommendation", "sequential-recommendation"],
    )
    metrics = [f"| {_cell(metric)} | {value:.6g} |" for metric, value in card.metrics.items()]
    fingerprint = f", {origin['tokenizer']}" if "tokenizer" in origin else ""
    missing = f"not here{fingerprint}; without it the weights are of no use"
    limits = [limit.format(read=sizes["window"] - 1, width=sizes["embedding_width"]) for limit in LIMITS]
    text = TEMPLATE.format(
        about=ABOUT[sizes["predicts"]],
        codes=sizes["codes_per_item"],
        read="codes and embeddings" if sizes["auxiliary"] else "codes alone",
        sizes="\n".join(f"| {_cell(size)} | {value} |" for size, value in sizes.items()),
        encoder=origin.get("encoder") or NOT_GIVEN,
        tokenizer=f"in `tokenizer/`{fingerprint}" if has_tokenizer else missing,
        data=card.data or NOT_GIVEN,
        metrics="\n".join(["| | |", "|---|---|", *metrics]) if metrics else NOT_GIVEN,
        limits="\n".join(f"- {limit}" for limit in (*limits, *filter(None, [card.limits]))),
        name=name,
    )
    return f"---\n{about.to_yaml()}\n---\n\n{text}"


def _cell(text: str) -> str:
    """A text as it can stand in a table."""
    return " ".join(text.replace("|", "\\|").split())
