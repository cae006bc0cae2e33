"""Classifier of sentences around a pretrained encoder of the BERT family."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class SentenceClassifier(nn.Module):
    """A model of ``transformers`` for sequence classification, called with tensors and answering with one.

    Args:
        encoder: from ``AutoModelForSequenceClassification``, or anything called like it.

    Shape:
        tokens and mask, both int64 ``[n, tokens]``, the mask 1 where there is a token and 0 in the padding behind it,
        to logits ``[n, classes]``. Padding that all sentences have is cut off.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder: Any = encoder

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        longest = int(mask.sum(1).max())
        return self.encoder(input_ids=tokens[:, :longest], attention_mask=mask[:, :longest]).logits
