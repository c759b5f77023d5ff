"""inception, vgg16, clip and dinov2: published networks, through torch-fidelity and timm; and the distance LPIPS."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from nvae.evaluation.quality.extractors.base import DIGEST_LENGTH, Extractor, Normalized, in_color
from nvae.evaluation.quality.extractors.weights import (
    file_digest,
    obtain,
    published_file,
    read_state_dict,
    short_digest,
    weights_folder,
)
from nvae.evaluation.quality.path_length import NamedDistance
from nvae.system.errors import UserError

DINOV2_SIDE = 224
OF_LPIPS = ("lpips", "vgg16")  # its files of weights


def load_fidelity(name: str, device: torch.device | str, file: Path | None, progress: bool) -> Extractor:
    """Return inception, vgg16 or clip, through torch-fidelity, which takes 8-bit images. Raises UserError.

    The file of clip is a program, not only tensors: any file but the published one is refused.
    """
    published = published_file(name)
    utils = _extra("torch_fidelity.utils", f"the extractor {name}")
    path = obtain(f"the extractor {name}", published, file, progress)
    digest = file_digest(path)
    is_published = bool(published.sha256) and digest.startswith(published.sha256)
    if name != "clip":
        read_state_dict(path)  # torch-fidelity itself would run code from the file
    elif not is_published:
        raise UserError(f"'{path}' is not the published file of CLIP. Download {published.url}.")
    try:
        with warnings.catch_warnings():  # of the libraries' own loading
            warnings.simplefilter("ignore")
            body = utils.create_feature_extractor(
                published.network, [published.layer], cuda=False, feature_extractor_weights_path=path, verbose=False
            )
    except (RuntimeError, KeyError) as error:
        raise UserError(f"'{path}' has other tensors than the network {name}. Download {published.url}.") from error
    body.to(device)

    def features(images: Tensor) -> Tensor:
        images_u8 = in_color(images).mul(255).round().clamp(0, 255).byte()
        return body(images_u8.contiguous())[0]

    source = f"{path.name} through torch-fidelity{'' if is_published else ', not the published weights'}"
    digest, dimensions = digest[:DIGEST_LENGTH], published.dimensions
    return Extractor(name, digest, dimensions, source, features, torch.device(device), is_continuous=False)


def load_dinov2(device: torch.device | str, file: Path | None, progress: bool) -> Extractor:
    """Return DINOv2 ViT-S/14: the class token, 384 features, through timm.

    The images are resized to 224x224, bilinear, and normalized as ImageNet. timm resamples the embeddings of positions
    in its own way, so that features differ a little from those of the original program.
    """
    timm = _extra("timm", "the extractor dinov2")
    published = published_file("dinov2")
    path = obtain("the extractor dinov2", published, file, progress)
    weights = read_state_dict(path)
    body = timm.create_model("vit_small_patch14_dinov2", img_size=DINOV2_SIDE, num_classes=0)
    try:
        body.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(weights, body))
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' has other tensors than DINOv2 ViT-S/14. Download {published.url}.") from error
    network = Normalized(body, DINOV2_SIDE).to(device).eval().requires_grad_(False)
    source = f"DINOv2 ViT-S/14 through timm, {path.name}"
    return Extractor("dinov2", short_digest(path), 384, source, network, torch.device(device))


def load_lpips(device: torch.device | str, progress: bool) -> NamedDistance:
    """Return the distance lpips, LPIPS with VGG16 (Zhang et al. 2018), of images (B, C, S, S) in [0, 1].

    The network is that of torch-fidelity. Its two files of weights must be where torch keeps them, or can be
    downloaded. Raises UserError.
    """
    fidelity = _extra("torch_fidelity.sample_similarity_lpips", "the distance LPIPS")
    paths = [obtain("the distance LPIPS", published_file(name), None, progress) for name in OF_LPIPS]
    for path in paths:
        read_state_dict(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = fidelity.SampleSimilarityLPIPS("lpips-vgg16").to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(255 * in_color(a), 255 * in_color(b)).flatten().cpu()

    return NamedDistance("lpips", " ".join(["lpips", *map(short_digest, paths)]), distance)


def lpips_is_here() -> bool:
    """Return whether the files that LPIPS needs are on the disk, and torch-fidelity is installed."""
    files = all((weights_folder() / published_file(name).file).is_file() for name in OF_LPIPS)
    return files and importlib.util.find_spec("torch_fidelity") is not None


def _extra(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the extra 'metrics'. Install it with pip install -e '.[metrics]'.") from error
