"""self: a small network that learns, from the data set alone, to recognize what was done to an image.

Labels and downloads are not needed: every training image is rotated, moved, scaled and cut into halves that change
places at random, and the network tells how (a generalization of Gidaris et al. 2018). The features are what it computes
of an untouched image before its answers. Some noise and blur in training keep what no person sees out of the features.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.data.cache import cache_folder
from nvae.data.images import images_digest, to_float
from nvae.evaluation.quality.extractors.base import DIGEST_LENGTH, Extractor
from nvae.models.modes import eval_mode
from nvae.system.errors import UserError
from nvae.system.memory_maps import release_pages
from nvae.system.progress import Progress, track
from nvae.system.seeds import seeded, seeded_defaults
from nvae.system.torch_files import CheckpointError, content_digest, read_whole, write_whole

VERSION = 1  # of the training: other numbers below need another version
STEPS = 600
TRAINING_BATCH = 128
LEARNING_RATE = 2e-3
CHANNELS = 16
FEATURES = 128
FINEST = 32  # images are compared in full at this size; larger ones lose detail in the first convolution
COARSEST = 4  # pixels per side before the mean over pixels
MEASURED = 4096  # training images from which the mean and the scale of the features come

SHIFT = 0.2  # of half an image
SCALE = 1.2
NOISE = 0.1  # largest standard deviation, of values in [0, 1]
BLUR = 0.03  # largest standard deviation, of an image's side
ANSWERS = {"rotation": 4, "row": 3, "column": 3, "scale": 3, "halves": 3}


class TransformationNetwork(nn.Module):
    """From images (B, channels, size, size) in [0, 1] to features (B, 128), and to logits of the transformations."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        stages = max(0, math.ceil(math.log2(size / COARSEST)))
        strides = [1 if size <= FINEST else 2] + [2] * (stages if size <= FINEST else max(0, stages - 1))
        widths = [min(FEATURES, CHANNELS * 2**i) for i in range(len(strides))]
        widths[-1] = FEATURES
        layers: list[nn.Module] = []
        for before, width, stride in zip([channels, *widths[:-1]], widths, strides, strict=True):
            convolution = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers[-1] = nn.Tanh()  # bounded: images unlike any in training cannot have features of any size
        self.body = nn.Sequential(*layers)
        self.answers = nn.ModuleDict({name: nn.Linear(FEATURES, count) for name, count in ANSWERS.items()})
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))

    def pooled(self, images: Tensor) -> Tensor:
        """Return the means over pixels of the last layer, (B, 128)."""
        return self.body((images - 0.5) * 2).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return features with mean 0 and, on average, variance 1 on the training images."""
        return (self.pooled(images) - self.mean) / self.scale

    def loss(self, images: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Return the sum of the cross entropies of all questions."""
        pooled = self.pooled(images)
        losses = [functional.cross_entropy(layer(pooled), labels[name]) for name, layer in self.answers.items()]
        return reduce(torch.add, losses)


def load_self(
    images_u8: Tensor,
    bits: int = 8,
    device: torch.device | str = "cpu",
    progress: Progress = False,
    file: Path | None = None,
) -> Extractor:
    """Return the extractor `self` of training images, uint8 (N, C, S, S): from the cache folder, or trained now.

    bits: of the model's images. file: the weights from another machine.
    The training is deterministic on one machine; other processors round differently, so that numbers of two machines
    are comparable only with one file. Raises UserError for a file of another image size, or a damaged one.
    """
    channels, size = images_u8.shape[1:3]
    path = file or weights_path(images_u8, bits)
    owner = {"extractor": "self", "version": VERSION, "channels": channels, "size": size, "bits": bits}
    try:
        weights = _read_weights(path, owner)
    except UserError:
        if file is not None:
            raise
        trained = train(images_u8, bits, device, progress)
        weights = {name: tensor.cpu() for name, tensor in trained.state_dict().items()}
        with suppress(CheckpointError):  # a folder that cannot be written
            write_whole({**owner, "weights": weights}, path, keep_previous=False)
    with torch.device("meta"):  # draws no random numbers
        network = TransformationNetwork(channels, size)
    try:
        network.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} is damaged: its tensors have other shapes. Delete the file.") from error
    network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    digest = content_digest({"weights": weights})[:DIGEST_LENGTH]
    return Extractor("self", digest, FEATURES, f"trained on the data set, {path}", network, torch.device(device))


def weights_path(images_u8: Tensor, bits: int = 8) -> Path:
    """Return where the weights are kept."""
    return cache_folder() / "extractors" / f"self_{images_digest(images_u8)}_{bits}bits_{VERSION}.weights"


def _read_weights(path: Path, owner: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a file for images as the owner's. Raises UserError."""
    try:
        content = read_whole(path)
    except CheckpointError as error:
        raise UserError(
            f"{path} cannot be used as weights of the extractor self: {error} Give a file self_*.weights from "
            "the folder 'extractors' of a cache folder."
        ) from error
    made_for = {key: content.get(key) for key in owner}
    if made_for != owner:
        raise UserError(
            f"{path} has no weights for these images: got {made_for}, expected {owner}. Use the file of this data set."
        )
    return content["weights"]


def train(
    images_u8: Tensor, bits: int = 8, device: torch.device | str = "cpu", progress: Progress = False
) -> TransformationNetwork:
    """Train the network on images, uint8 (N, C, S, S): 600 steps, about a minute on a CPU core at 32x32."""
    device, count = torch.device(device), len(images_u8)
    channels, size = images_u8.shape[1:3]
    with seeded_defaults(0, "self extractor", 0, device):
        network = TransformationNetwork(channels, size)
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in track(range(STEPS), "training the extractor self", progress):
        generator = seeded(0, "self extractor", step)
        chosen = torch.randint(count, (TRAINING_BATCH,), generator=generator)
        images, labels = transform(_floats(images_u8, chosen, bits), generator)
        loss = network.loss(images.to(device), {name: label.to(device) for name, label in labels.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    chosen = torch.randperm(count, generator=seeded(0, "self extractor statistics"))[:MEASURED]
    with eval_mode(network), torch.no_grad():
        pooled = torch.cat([network.pooled(_floats(images_u8, part, bits).to(device)) for part in chosen.split(64)])
    network.mean.copy_(pooled.mean(0))
    network.scale.copy_(pooled.var(0, correction=0).mean().sqrt().clamp(min=1e-6))
    return network


def _floats(images_u8: Tensor, chosen: Tensor, bits: int) -> Tensor:
    images = to_float(images_u8[chosen], "cpu", bits)
    release_pages()
    return images


def transform(images: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Transform each of the images (B, C, S, S) in [0, 1] at random; return what was done, (B,) for each question."""
    batch = len(images)
    labels = {name: torch.randint(count, (batch,), generator=generator) for name, count in ANSWERS.items()}
    turns, halves = labels["rotation"], labels["halves"]
    turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, turns, strict=True)])
    middle = images.shape[-1] // 2
    swapped = torch.stack([turned, turned.roll(middle, 2), turned.roll(middle, 3)])  # (3, B, C, S, S)
    images = swapped[halves, torch.arange(batch)]
    scale = torch.tensor([SCALE, 1.0, 1 / SCALE])[labels["scale"]]
    matrices = torch.zeros(batch, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale
    matrices[:, 0, 2] = SHIFT * (labels["column"] - 1)
    matrices[:, 1, 2] = SHIFT * (labels["row"] - 1)
    points = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, points, padding_mode="border", align_corners=False)
    softened = blurred(images, BLUR * images.shape[-1])
    share = torch.rand(batch, generator=generator)[:, None, None, None]
    images = images + share * (softened - images)
    strength = NOISE * torch.rand(batch, generator=generator)[:, None, None, None]
    noise = torch.randn(images.shape, generator=generator)
    return (images + strength * noise).clamp(0, 1).contiguous(), labels


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur images (B, C, S, S) with a Normal of standard deviation `sigma` pixels; edges are repeated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)
    channels = images.shape[1]
    padded = functional.pad(images, (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
