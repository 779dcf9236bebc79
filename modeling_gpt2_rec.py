"""GPT-2 with item-block attention: the transformers model with another mask, and nothing else changed."""

import torch
from torch import Tensor
from transformers import Cache, GPT2Config, GPT2Model


def item_block_mask(history: Tensor, queries: int, tokens_per_item: int) -> Tensor:
    """Which keys each query sees: its own item's tokens and those of earlier items of the same history.

    Args:
        history: (B, T) int64, the history that each slot belongs to, negative for padding. One row may hold several
            histories one after another, each starting at a multiple of `tokens_per_item`.
        queries: number of query tokens, the last ones of the T slots (fewer than T when the rest is cached).
        tokens_per_item: tokens of one item (K = 4).

    Returns:
        (B, 1, queries, T) bool, True where visible. Padding sees only padding, so no row is empty of keys.
    """
    item = torch.arange(history.shape[1], device=history.device) // tokens_per_item
    earlier_or_own = item[None, :] <= item[-queries:, None]  # (queries, T): kv // 4 <= q // 4
    same_history = history[:, None, :] == history[:, -queries:, None]  # (B, queries, T)
    return (same_history & earlier_or_own)[:, None]


class GPT2ItemModel(GPT2Model):
    """`transformers.GPT2Model` whose tokens see all tokens of their own item, not only the earlier ones."""

    def __init__(self, config: GPT2Config, tokens_per_item: int):
        super().__init__(config)
        self.tokens_per_item = tokens_per_item

    def forward(
        self, inputs_embeds: Tensor, history: Tensor, position_ids: Tensor, past_key_values: Cache | None = None
    ) -> Tensor:
        """(B, T, D) input embeddings -> (B, T, D) final hidden states; new keys and values go to `past_key_values`.

        `history` is (B, cached + T) int64 as in `item_block_mask`; `position_ids` is (B, T) int64.
        """
        mask = item_block_mask(history, inputs_embeds.shape[1], self.tokens_per_item)
        if self.config._attn_implementation != "sdpa":
            # Eager attention adds the mask to the scores; a boolean one would be added as 0 and 1.
            lowest = torch.finfo(inputs_embeds.dtype).min
            mask = torch.zeros_like(mask, dtype=inputs_embeds.dtype).masked_fill(~mask, lowest)
        output = super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
        )
        return output.last_hidden_state
