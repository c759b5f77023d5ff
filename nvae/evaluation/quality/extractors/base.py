"""What an extractor is: a network with a name and a digest of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH_SIZE = 50
DIGEST_LENGTH = 12
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features.

    network: from float images (B, C, S, S) in [0, 1] on `device` to features (B, dimensions). name, digest: which
    network, and 12 hexadecimal digits of its weights. source: where the weights come from, a noun phrase.
    is_continuous: whether small changes of an image change the features; not where the network takes 8-bit images.
    """

    name: str
    digest: str
    dimensions: int
    source: str
    network: Callable[[Tensor], Tensor]
    device: torch.device
    is_continuous: bool = True

    @property
    def key(self) -> str:
        """Identifies the extractor with its weights."""
        return f"{self.name} {self.digest}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (N, dimensions), float32 on the CPU, of images (N, C, S, S) in [0, 1]."""
        parts = [self.network(part.to(self.device)).float().cpu() for part in images.split(BATCH_SIZE)]
        return torch.cat(parts)

    def facts(self) -> dict[str, str | int]:
        """Return what a result has to say about its extractor."""
        return {"name": self.name, "digest": self.digest, "dimensions": self.dimensions, "source": self.source}


def in_color(images: Tensor) -> Tensor:
    """Return images (B, 3, S, S) from (B, 1 or 3, S, S): gray becomes three equal channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class Normalized(nn.Module):
    """Resizes images (B, 1 or 3, S, S) in [0, 1], bilinear, normalizes them as ImageNet, and applies a network."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, side: int) -> None:
        super().__init__()
        self.body, self.side = body, side
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        resized = functional.interpolate(in_color(images), (self.side, self.side), mode="bilinear", antialias=True)
        return self.body((resized - self.mean) / self.std)
