"""Images classified by the tokens of their captions: alone (SuperClass, arXiv:2411.03313), or
beside the contrast of image-text pairs (SuperCLIP, arXiv:2512.14480)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.models.layers import blocks
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import DataUse, Features, Parts, Views
from clipx.types import LossOutput, Pool, UserError

ROWS_AT_ONCE = 256  # of logits and what backward makes of them: 280 MB for CLIP's vocabulary


@config
class Config(DataUse):
    """A linear head over the image tower predicts the tokens of the caption."""

    weight: float = Field(default=1.0, gt=0)
    """Of the classification."""
    contrast: bool = True
    """Add the run's `loss` of image-text pairs. Without it, the text tower is not trained."""

    contrasts_text = True
    needs_pixels = True

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [of_run]

    def build(self, parts: Parts) -> BagOfTokens:
        if parts.queue and not self.contrast:
            raise UserError(
                f"pool.queue {parts.queue}: objective.contrast is false, so there are no "
                "image-text pairs to keep; set pool.queue=0"
            )
        head = TokenHead(parts.embed_dim, parts.vocab_size, parts.special_ids)
        return BagOfTokens(
            head,
            parts.encoder,
            parts.loss,
            weight=self.weight,
            contrast=self.contrast,
            **parts.of_pairs,
        )


class TokenHead(nn.Module):
    """A linear classifier of V tokens, and in how many captions each token has been.

    All ranks have the same counts: those of one process that has seen the same batches.
    """

    num_captions: Tensor  # () int64, that were counted
    captions_with: Tensor  # (V,) int64, of them with each token
    is_word: Tensor  # (V,) bool, false for start, end and padding

    def __init__(self, embed_dim: int, vocab_size: int, special_ids: frozenset[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, vocab_size)
        self.register_buffer("num_captions", torch.zeros((), dtype=torch.int64))
        self.register_buffer("captions_with", torch.zeros(vocab_size, dtype=torch.int64))
        is_word = torch.ones(vocab_size, dtype=torch.bool)
        is_word[sorted(special_ids)] = False
        self.register_buffer("is_word", is_word, persistent=False)

    def first_of_each_word(self, tokens: Tensor) -> Tensor:
        """(b, T) int64 -> (b, T) bool: tokens of words, without repetitions."""
        same = tokens[:, :, None] == tokens[:, None, :]
        is_repeated = same.tril(-1).any(2)
        # Ids beyond the vocabulary are no words, such as mT5's <extra_id_0> in a caption.
        is_known = tokens < len(self.is_word)
        return self.is_word[self._within(tokens)] & is_known & ~is_repeated

    def _within(self, tokens: Tensor) -> Tensor:
        return tokens.clamp(max=len(self.is_word) - 1)

    @torch.no_grad()
    def count(self, tokens: Tensor, pool: Pool) -> None:
        """Add the captions of all ranks. All ranks take part. tokens: (B, T)"""
        counts = torch.zeros_like(self.captions_with)
        for part in tokens.split(ROWS_AT_ONCE):
            is_new = self.first_of_each_word(part).long()
            counts.scatter_add_(0, self._within(part).flatten(), is_new.flatten())
        # Counts rather than token ids: ranks pad their captions to different lengths.
        own = torch.cat([counts, counts.new_tensor([len(tokens)])])
        total = pool.gather(own[None]).sum(0)
        self.captions_with += total[:-1]
        self.num_captions += total[-1]

    def rarity(self) -> Tensor:
        """(V,) float32 inverse document frequency, log((n + 1) / (captions with it + 1/2)).

        SuperClass has log(n / (captions with it + 1)), which is zero or negative for a token of
        nearly all captions. This is positive, and all tokens weigh the same before the first
        caption.
        """
        num_captions = self.num_captions.double() + 1
        return (num_captions / (self.captions_with.double() + 0.5)).log().float()

    def forward(self, embedding: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(cross-entropy, whether the likeliest token is in the caption), (B,) each.

        embedding: (B, D) float32 of the images, not of unit norm; tokens: (B, T) of their captions
        """
        rarity = self.rarity()
        losses = []
        hits = []
        parts = zip(embedding.split(ROWS_AT_ONCE), tokens.split(ROWS_AT_ONCE), strict=True)
        for rows, tokens_of_rows in parts:
            # Logits are computed again in backward, so that those of one part alone are in memory.
            loss, hit = checkpoint(
                self._classify, rows, tokens_of_rows, rarity, use_reentrant=False
            )
            losses.append(loss)
            hits.append(hit)
        return torch.cat(losses), torch.cat(hits)

    def _classify(self, rows: Tensor, tokens: Tensor, rarity: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(rows)
        is_target = self.first_of_each_word(tokens)
        ids = self._within(tokens)
        weights = torch.where(is_target, rarity[ids], 0.0)
        total = weights.sum(1, keepdim=True)
        # -sum of y log softmax(z) is logsumexp(z) - sum of y z where y sums to 1: no row of the
        # target has the vocabulary's size.
        share = weights / total.clamp(min=torch.finfo(total.dtype).tiny)
        cross_entropy = logits.logsumexp(1) - (share * logits.gather(1, ids)).sum(1)
        # A caption without words, such as "", has no target and a loss of zero.
        loss = torch.where(total[:, 0] > 0, cross_entropy, 0.0)
        likeliest = logits.detach().argmax(1, keepdim=True)
        hit = ((tokens == likeliest) & is_target).any(1)
        return loss, hit


class BagOfTokens(ImageText):
    """Views: those of ImageText. Features: embedding (B, D), not of unit norm, and tokens (B, T);
    with the contrast also those of ImageText."""

    def __init__(
        self, head: TokenHead, *parts: Any, weight: float, contrast: bool, **settings: Any
    ) -> None:
        super().__init__(*parts, **settings)
        self.head = head
        self._weight = weight
        self._contrast = contrast
        if not contrast:
            self.trained_parts = ("visual.",)

    def embed(self, views: Views) -> Features:
        image = self._normalize(views["image"])
        draws = views.get("draws")
        visual = self.encoder.visual
        embedding = visual(image) if draws is None else visual(image, draws)
        features = {"embedding": embedding.float(), "tokens": views["text"]}
        if not self._contrast:
            return features
        features["image"] = F.normalize(features["embedding"], dim=-1)
        features["text"] = self.encoder.encode_text(views["text"])
        if "ids" in views:
            features["ids"] = views["ids"]
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        tokens = features["tokens"]
        if torch.is_grad_enabled():  # an evaluation leaves the counts as they are
            self.head.count(tokens, pool)
        token_losses, hits = self.head(features["embedding"], tokens)
        token_loss = token_losses.mean()
        total = self._weight * token_loss
        metrics = {"token_loss": token_loss.detach(), "token_accuracy": hits.float().mean()}
        if not self._contrast:
            return LossOutput(total, metrics)
        pairs = super().loss(features, pool)
        metrics["pair_loss"] = pairs.loss.detach()
        return LossOutput(pairs.loss + total, {**pairs.metrics, **metrics})

    def after_step(self) -> dict[str, Tensor]:
        return super().after_step() if self._contrast else {}

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The head is used in `loss` alone, so it stays whole on every rank."""
        if self._contrast:
            return super().shards()
        visual = self.encoder.visual
        return blocks(visual), [visual]
