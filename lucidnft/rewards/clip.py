"""open_clip models as rewards: similarity of SR to LR (or HR) images, and to a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.rewards.model_files import clip_files
from lucidnft.rewards.vision_towers import (
    DEFAULT_MODEL,
    DEFAULT_PRETRAINED,
    OpenClipEmbedder,
    import_open_clip,
    load_clip,
)
from lucidnft.schema import ConfigModel


class _ClipReward(Reward):
    """The image side that both CLIP rewards share."""

    OPTIONAL_EXTRA = "clip"

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._embedder = OpenClipEmbedder(network)

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), L2-normalised."""
        return F.normalize(self._embedder.embed(images)[:, 0], dim=-1)

    def to(self, device: torch.device | str) -> _ClipReward:
        """Move the CLIP model."""
        self._embedder.to(device)
        return self


class ClipSimilarity(_ClipReward):
    """Cosine of the CLIP embeddings of SR and of LR (or HR), in [-1, 1]."""

    def __init__(self, network: nn.Module, *, against: Literal["lr", "hr"] = "lr") -> None:
        """network: an open_clip model, e.g. from `load_clip`."""
        super().__init__(network)
        if against not in ("lr", "hr"):
            raise ValueError(f"clip_similarity: against is '{against}', expected 'lr' or 'hr'")
        self.against = against
        self.card = RewardCard(
            name="clip_similarity",
            needs=frozenset({against}),
            value_range=(-1.0, 1.0),
            note=f"Cosine of CLIP image embeddings of SR and {against.upper()}: semantics, not detail.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The normalised embeddings of the G references, (G, D)."""
        images = lr if self.against == "lr" else hr
        if images is None:
            raise ValueError(
                f"reward 'clip_similarity' needs {self.against}: pass reward(sr, {self.against}=...)"
            )
        return {"embedding": self.embed_images(images)}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        return (self.embed_images(sr) * reference["embedding"]).sum(dim=-1)


class ClipText(_ClipReward):
    """Cosine of the CLIP embeddings of SR and of its prompt, in [-1, 1]."""

    def __init__(self, network: nn.Module, tokenizer: Any, *, prompt: str | None = None) -> None:
        """tokenizer: texts -> token ids; prompt: used for every image, in place of the data's prompts."""
        super().__init__(network)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self.card = RewardCard(
            name="clip_text",
            needs=frozenset() if prompt is not None else frozenset({"prompt"}),
            value_range=(-1.0, 1.0),
            note="Cosine of CLIP embeddings of SR and of a text.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The normalised embeddings of the prompts, (G, D); nothing for a fixed prompt."""
        if self._prompt is not None:
            return {}
        if prompts is None:
            raise ValueError("reward 'clip_text' needs prompt: pass reward(sr, prompt=...) or set 'prompt'")
        return {"embedding": self.embed_texts(prompts)}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D), L2-normalised."""
        tokens = self._tokenizer(list(texts)).to(self._embedder.device)
        encode_text: Any = self._network.encode_text
        return F.normalize(encode_text(tokens).float(), dim=-1)

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        texts = reference["embedding"] if self._prompt is None else self.embed_texts([self._prompt])
        return (self.embed_images(sr) * texts).sum(dim=-1)


class ClipSimilarityConfig(ConfigModel):
    """Settings of `ClipSimilarity`."""

    type: Literal["clip_similarity"] = "clip_similarity"
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED  # an open_clip tag or a local weight file
    against: Literal["lr", "hr"] = "lr"
    weight: float = 1.0

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The weights."""
        return clip_files(self.model, self.pretrained)

    def build(self) -> ClipSimilarity:
        """Load the model and make the reward."""
        return ClipSimilarity(load_clip(self.model, self.pretrained), against=self.against)


class ClipTextConfig(ConfigModel):
    """Settings of `ClipText`."""

    type: Literal["clip_text"] = "clip_text"
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED
    prompt: str | None = None  # null: the prompts that come with the data
    weight: float = 1.0

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The weights."""
        return clip_files(self.model, self.pretrained)

    def build(self) -> ClipText:
        """Load the model and its tokenizer and make the reward."""
        network = load_clip(self.model, self.pretrained)
        return ClipText(network, import_open_clip().get_tokenizer(self.model), prompt=self.prompt)
