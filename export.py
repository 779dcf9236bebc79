"""Write a checkpoint or a tokenizer in the full form of the release, or as a directory that others can load by name.

    python -m export --input ckpt/layer_3_epoch_4.pt --output exported/recgpt_layer_3_weight.pt
    python -m export --input vae_ckpt/vae_len4_fsq88865_ep90.pt --output exported/vae_len4_fsq88865_ep90.pt
    python -m export --input ckpt/layer_3_epoch_4.pt --vae_ckpt vae_ckpt/vae_len4_fsq88865_ep90.pt --pretrained my_model

--output: the published program asks for weights that it never uses, which our files leave out: a token embedding of
50,257 rows, of which 15,361 are used, and a transformer under `encoder.` in the tokenizer. They are filled with zeros.
The JSON beside the weights is copied.

--pretrained: config.json, weights as safetensors, a model card, and in tokenizer/ the tokenizer of --vae_ckpt, as
RecGPT.from_pretrained and AutoEncoder.from_pretrained read them (docs/sharing.md). --card is a JSON object of what only
you know: "data", "limits" and "license", texts, and "metrics", names with numbers.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import argparse

import torch
from torch import Tensor

from ae_trainer import load_tokenizer
from model import load_model
from utils.checkpoint import UNSAID, load_state, read_metadata, save_state
from utils.cli import parser, run
from utils.errors import InputError
from utils.files import check_writable
from utils.fsq import PUBLISHED
from utils.model_card import Card

RELEASE_ROWS = 50_257  # rows of the token embedding: GPT-2's own vocabulary
RELEASE_HEADS = 12  # attention heads, which shapes do not show
EMBEDDING = "gpt2model.wte.weight"


def main() -> None:
    """Parse, and write the one or the other."""
    flags = parser(__doc__)
    flags.add_argument("--input", required=True, metavar="FILE", help="checkpoint of pre_train.py or ae_trainer.py")
    written = flags.add_mutually_exclusive_group(required=True)
    written.add_argument("--output", metavar="FILE.pt", help="file to write")
    written.add_argument("--pretrained", metavar="DIR", help="directory to write")
    flags.add_argument("--vae_ckpt", metavar="FILE", help="tokenizer weights, to go with a model's into DIR")
    flags.add_argument("--card", metavar="FILE.json", help="what the model card of DIR says of a model's training")
    args = flags.parse_args()
    is_model = EMBEDDING in load_state(args.input)
    extra = [f"--{name}" for name in ("vae_ckpt", "card") if getattr(args, name)]
    if extra and not (args.pretrained and is_model):
        raise InputError(f"{extra[0]} goes with a model's weights into the directory of --pretrained. Leave it out.")
    write_pretrained(args, is_model) if args.pretrained else write_released(args, is_model)


def write_pretrained(args: argparse.Namespace, is_model: bool) -> None:
    """Write the directory of --pretrained."""
    if is_model:
        model, _ = load_model(args.input, torch.device("cpu"))
        tokenizer = load_tokenizer(args.vae_ckpt) if args.vae_ckpt else None
        model.save_pretrained(args.pretrained, tokenizer, Card.read(args.card) if args.card else None)
    else:
        load_tokenizer(args.input).save_pretrained(args.pretrained)
    lacking = "" if not is_model or args.vae_ckpt else ", without the tokenizer; to add it, give --vae_ckpt"
    print(f"{args.pretrained}: weights of {args.input}{lacking}")


def write_released(args: argparse.Namespace, is_model: bool) -> None:
    """Fill up the weights, and write the file of --output."""
    check_writable(args.output)
    if is_model:
        model, metadata = load_model(args.input, torch.device("cpu"))
        noted = model.config.noted()
        for name, value in UNSAID.items():
            if value is not None and noted[name] != value:
                found = f"{name} {noted[name]}, and the published program knows only {value}"
                raise InputError(f"{args.input} has {found}. Export another, or give --pretrained.")
        heads, state = model.config.attention_heads, full_model(model.state_dict())
        metadata = {**metadata, "config": noted}
        if heads != RELEASE_HEADS:
            print(f"{args.input} has {heads} attention heads, the published program {RELEASE_HEADS}: change its code")
    else:
        tokenizer = load_tokenizer(args.input)
        if tokenizer.codebook != PUBLISHED:
            found = f"makes {tokenizer.codebook}, and the published program knows only {PUBLISHED}"
            raise InputError(f"{args.input} {found}. Export another, or give --pretrained.")
        if tokenizer.whitens:
            raise InputError(f"{args.input} whitens embeddings, which the published program cannot do. Export another.")
        state, metadata = full_tokenizer(tokenizer.state_dict()), read_metadata(args.input)
    save_state(args.output, state, metadata)
    print(f"{args.output}: {len(state)} tensors, {sum(value.numel() for value in state.values()) / 1e6:.1f} M numbers")


def full_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add rows of zeros to the token embedding of a model until it has as many as the release."""
    rows = state[EMBEDDING]
    return state | {EMBEDDING: torch.cat([rows, rows.new_zeros(RELEASE_ROWS - len(rows), rows.shape[1])])}


def full_tokenizer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the encoder that the release has to a tokenizer, as zeros: shaped as the decoder, without its head."""
    unused = {
        name.replace("decoder.", "encoder."): torch.zeros_like(value)
        for name, value in state.items()
        if name.startswith("decoder.") and not name.startswith("decoder.linear_layer.")
    }
    return unused | state


if __name__ == "__main__":
    run(main)
