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
from clipx.objectives.objective import Features, NeedsPixelsAndTokens, Parts, Views
from clipx.types import LossOutput, Pool, UserError

ROWS_AT_ONCE = 256  # of logits: 50 MB for CLIP's vocabulary


@config
class Config(NeedsPixelsAndTokens):
    """A linear head over the image tower predicts the tokens of the caption."""

    weight: float = Field(default=1.0, gt=0)
    """Of the classification."""
    contrast: bool = True
    """Add the run's `loss` of image-text pairs. Without it, the text tower is not trained."""

    contrasts_text = True

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
            normalize=parts.normalize,
            seed=parts.seed,
            pad_id=parts.pad_id,
            queue=parts.queue,
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

    def bags(self, tokens: Tensor) -> Tensor:
        """(b, T) int64 -> (b, V) bool: whether a caption has a token, however often."""
        vocab_size = len(self.is_word)
        bags = torch.zeros(len(tokens), vocab_size + 1, dtype=torch.bool, device=tokens.device)
        # The last column takes ids beyond the vocabulary, such as mT5's <extra_id_0> in a caption.
        bags.scatter_(1, tokens.clamp(max=vocab_size), True)
        return bags[:, :vocab_size] & self.is_word

    @torch.no_grad()
    def count(self, tokens: Tensor, pool: Pool) -> None:
        """Add the captions of all ranks. All ranks take part. tokens: (B, T)"""
        counts = torch.zeros_like(self.captions_with)
        for part in tokens.split(ROWS_AT_ONCE):
            counts += self.bags(part).sum(0)
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
        bags = self.bags(tokens)
        weights = torch.where(bags, rarity, 0.0)
        # A caption without words, such as "", has no target and a loss of zero.
        target = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        loss = -(target * F.log_softmax(logits, dim=1)).sum(1)
        likeliest = logits.detach().argmax(1, keepdim=True)
        return loss, bags.gather(1, likeliest)[:, 0]


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
