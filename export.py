"""Write a checkpoint or a tokenizer in the full form of the release, which the published program loads.

    python -m export --input ckpt/layer_3_epoch_4.pt --output exported/recgpt_layer_3_weight.pt
    python -m export --input vae_ckpt/vae_len4_fsq88865_ep90.pt --output exported/vae_len4_fsq88865_ep90.pt

The published program asks for weights that it never uses, which our files leave out: a token embedding of 50,257 rows,
of which 15,361 are used, and a transformer under `encoder.` in the tokenizer. They are filled with zeros. The JSON
beside the weights is copied.
"""

if __name__ == "__main__":
    from utils.cli import end_at_ctrl_c

    end_at_ctrl_c()

import torch
from torch import Tensor

from ae_trainer import load_tokenizer
from model import load_model
from utils.checkpoint import ITEMS, load_state, read_metadata, save_state
from utils.cli import parser, run
from utils.errors import InputError
from utils.files import check_writable

RELEASE_ROWS = 50_257  # rows of the token embedding: GPT-2's own vocabulary
RELEASE_HEADS = 12  # attention heads, which shapes do not show
EMBEDDING = "gpt2model.wte.weight"


def main() -> None:
    """Parse, check, fill up, write."""
    flags = parser(__doc__)
    flags.add_argument("--input", required=True, metavar="FILE", help="checkpoint of pre_train.py or ae_trainer.py")
    flags.add_argument("--output", required=True, metavar="FILE.pt", help="file to write")
    args = flags.parse_args()
    check_writable(args.output)
    if EMBEDDING in load_state(args.input):
        model, metadata = load_model(args.input, torch.device("cpu"))
        if model.config.predicts == ITEMS:
            raise InputError(f"{args.input} predicts items, which the published program cannot do. Export another.")
        heads, state = model.config.attention_heads, full_model(model.state_dict())
        metadata = {**metadata, "config": {**metadata.get("config", {}), "heads": heads}}
        if heads != RELEASE_HEADS:
            print(f"{args.input} has {heads} attention heads, the published program {RELEASE_HEADS}: change its code")
    else:
        tokenizer = load_tokenizer(args.input)
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
