"""A model whose matrices have numbers of 16 bits, for a CPU: few tokens are bound by reading the weights.

Inputs, sums and results stay float32 (FBGEMM's product of float32 and float16), so that only the weights are rounded.
Nearly everyone's first ten items stay the same (docs/performance.md, "Weights of 16 bits").
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from model import Head, RecGPT
from utils.checkpoint import CODES


class HalfLinear(nn.Module):
    """x W^T + b with W (O, I) in float16, packed once; x and the result are float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float().contiguous(), bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., I) float32 -> (..., O) float32."""
        return torch.ops.quantized.linear_dynamic_fp16(states.contiguous(), self.packed)


class HalfAttention(nn.Module):
    """The projection to queries, keys and values, of which the last block needs the queries of few tokens only."""

    def __init__(self, projection: Conv1D):
        super().__init__()
        width = len(projection.weight)
        weight, bias = projection.weight.detach().T, projection.bias.detach()  # (3D, D)
        self.query = HalfLinear(weight[:width], bias[:width])
        self.keys_values = HalfLinear(weight[width:], bias[width:])

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) float32 -> (..., 3D) float32."""
        return torch.cat([self.query(states), self.keys_values(states)], -1)


class HalfHead(nn.Module):
    """The head of a model that predicts codes, without its table in float32."""

    def __init__(self, head: Head):
        super().__init__()
        self.product = HalfLinear(head.weight, None)
        del head.weight
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) float32 -> logits (..., V) float32."""
        return self.product(self.head.states(hidden))


def halve(model: RecGPT) -> None:
    """Let a model on the CPU compute with matrices in float16, for predictions only."""
    for block in model.gpt2model.h:
        block.attn.c_attn = HalfAttention(block.attn.c_attn)
        for owner, name in ((block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj")):
            projection = getattr(owner, name)
            setattr(owner, name, HalfLinear(projection.weight.T, projection.bias.detach()))
    if model.config.predicts == CODES:
        model.pred_head = HalfHead(model.pred_head)
