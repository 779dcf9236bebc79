"""What a run starts from, or repeats: which checkpoints and data fit each other, and who has seen which targets."""

from pathlib import Path
from typing import Any

from utils.checkpoint import read_metadata, weight_files
from utils.datasets import SEEN, Interactions, Origin, check_fit, noted_whole_lists
from utils.errors import InputError
from utils.files import MANIFEST, content, read_json
from utils.fsq import Codebook
from utils.training.settings import Settings


def check_refit(settings: Settings, data: Interactions, processes: int) -> None:
    """InputError unless a run repeats, on the data at hand, the steps of the checkpoint of --refit_of."""
    path = settings.refit_of
    metadata = read_metadata(path)
    config = metadata.get("config", {})
    width, codebook = config.get("embedding_width", data.origin.width), Codebook.read(config, path)
    earlier = Origin(path, width, metadata.get("encoder"), metadata.get("tokenizer"), codebook)
    check_fit(earlier, data.origin._replace(name=settings.data_path))
    seen, chosen_on = targets_seen(settings), metadata.get("held_out")
    if seen and chosen_on and seen not in chosen_on:
        raise InputError(
            f"--refit_of {path} was chosen on other targets than {settings.data_path} has. Give the folder whole of "
            "the data that it was trained on, or make that anew and train again."
        )
    drawn_among = metadata.get("histories")
    if settings.data_share < 1 and drawn_among != len(data.sequences):
        raise InputError(
            f"--refit_of {path} was trained on a share of {drawn_among or 'unknown'} histories, and "
            f"{settings.data_path} has {len(data.sequences)}: the share would be of other users. Draw them with "
            "make_pre_train.py --share, and train without --data_share."
        )
    passes = metadata.get("processes", processes) * metadata["training"].get("gradient_accumulation_steps", 1)
    if passes != processes * settings.gradient_accumulation_steps:
        raise InputError(
            f"--refit_of {path} was trained by {metadata['processes']} process(es), and here are {processes}: a step "
            "would read another number of histories. Start as many, or make up for it by --gradient_accumulation_steps."
        )


def targets_seen(settings: Settings) -> str | None:
    """Hash of the eval.pkl whose targets the histories of --data_path have, where make_pre_train.py says so."""
    return read_json(Path(settings.data_path) / MANIFEST, missing_ok=True).get(SEEN)


def whole_lists_seen(settings: Settings, initial: dict[str, Any]) -> list[str]:
    """Hashes of the train.pkl whose lists a run reads to their end, or those who trained its `initial` weights did."""
    read = read_json(Path(settings.data_path) / MANIFEST, missing_ok=True)
    return sorted({value for noted in (read, initial) for value in noted_whole_lists(noted)})


def check_kept(settings: Settings, flag: str, path: str) -> None:
    """InputError if a run may replace a checkpoint that it starts from, or repeats, by one of its own."""
    if Path(path).name.startswith("layer_") and Path(path).resolve().parent == Path(settings.ckpt_dir).resolve():
        raise InputError(f"{flag} {path} is in --ckpt_dir, where this run may replace it. Give another --ckpt_dir.")


def noted_path(note: Any) -> str | None:
    """Where the weights of --init_from or --refit_of were, of which a JSON has a note; None where it has none."""
    path = note.get("path", note.get("name")) if isinstance(note, dict) else None
    return path if isinstance(path, str) else None


def weights_content(path: str) -> list[str]:
    """Hashes of a file of weights, or of its zip parts."""
    return [content(file) for file in weight_files(path)]
