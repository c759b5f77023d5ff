"""inception, vgg16, clip and dinov2: published networks, through torch-fidelity and timm; and the distance LPIPS."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.evaluation.quality.extractors.base import DIGEST_LENGTH, Extractor, Normalized, in_color
from nvae.evaluation.quality.extractors.weights import (
    PublishedFile,
    file_digest,
    obtain,
    read_state_dict,
    short_digest,
    weights_folder,
)
from nvae.evaluation.quality.path_length import NamedDistance
from nvae.system.errors import UserError

INCEPTION = PublishedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
VGG16 = PublishedFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
CLIP_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP = PublishedFile(
    f"clip-vit-b-32-{CLIP_SHA256}.pt",
    f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/ViT-B-32.pt",
    CLIP_SHA256,
)
DINOV2 = PublishedFile(
    "dinov2_vits14_pretrain.pth", "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"
)
LPIPS = PublishedFile(
    "weights-vgg16-lpips.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
)
DINOV2_SIDE = 224


class FidelityNetwork(NamedTuple):
    """A network of torch-fidelity: its name there, the layer of the features, their number, and the weights."""

    name: str
    layer: str
    dimensions: int
    published: PublishedFile


FIDELITY = {
    "inception": FidelityNetwork("inception-v3-compat", "2048", 2048, INCEPTION),  # of the published FID: pool3
    "vgg16": FidelityNetwork("vgg16", "fc2_relu", 4096, VGG16),  # second fully connected layer after its ReLU
    "clip": FidelityNetwork("clip-vit-b-32", "clip", 512, CLIP),  # image embedding
}


def load_fidelity(name: str, device: torch.device | str, file: Path | None, progress: bool) -> Extractor:
    """Return inception, vgg16 or clip, through torch-fidelity, which takes 8-bit images. Raises UserError.

    The file of clip is a program, not only tensors: any file but the published one is refused.
    """
    network = FIDELITY[name]
    published = network.published
    utils = _extra("torch_fidelity.utils", f"the extractor {name}")
    path = obtain(f"the extractor {name}", published, file, progress)
    digest = file_digest(path)
    is_published = bool(published.sha256) and digest.startswith(published.sha256)
    if name != "clip":
        read_state_dict(path)  # torch-fidelity itself would run code from the file
    elif not is_published:
        raise UserError(f"'{path}' is not the published file of CLIP. Download {published.url}.")
    try:
        with _quiet():
            body = utils.create_feature_extractor(
                network.name, [network.layer], cuda=False, feature_extractor_weights_path=str(path), verbose=False
            )
    except (RuntimeError, KeyError) as error:
        raise UserError(f"'{path}' has other tensors than the network {name}. Download {published.url}.") from error
    body.to(device)

    def features(images: Tensor) -> Tensor:
        images_u8 = in_color(images).mul(255).round().clamp(0, 255).byte()
        return body(images_u8.contiguous())[0]

    source = f"{path.name} through torch-fidelity{'' if is_published else ', not the published weights'}"
    dimensions, device = network.dimensions, torch.device(device)
    return Extractor(name, digest[:DIGEST_LENGTH], dimensions, source, features, device, is_continuous=False)


def load_dinov2(device: torch.device | str, file: Path | None, progress: bool) -> Extractor:
    """Return DINOv2 ViT-S/14: the class token, 384 features, through timm.

    The images are resized to 224x224, bilinear, and normalized as ImageNet. timm resamples the embeddings of positions
    in its own way, so that features differ a little from those of the original program.
    """
    timm = _extra("timm", "the extractor dinov2")
    path = obtain("the extractor dinov2", DINOV2, file, progress)
    weights = read_state_dict(path)
    body = timm.create_model("vit_small_patch14_dinov2", img_size=DINOV2_SIDE, num_classes=0)
    try:
        body.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(weights, body))
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"'{path}' has other tensors than DINOv2 ViT-S/14. Download {DINOV2.url}.") from error
    network = Normalized(body, DINOV2_SIDE).to(device).eval().requires_grad_(False)
    source = f"DINOv2 ViT-S/14 through timm, {path.name}"
    return Extractor("dinov2", short_digest(path), 384, source, network, torch.device(device))


def load_lpips(device: torch.device | str, progress: bool) -> NamedDistance:
    """Return the distance lpips, LPIPS with VGG16 (Zhang et al. 2018), of images (B, C, S, S) in [0, 1].

    The network is that of torch-fidelity. Its two files of weights must be where torch keeps them, or can be
    downloaded. Raises UserError.
    """
    instead = "measure path lengths without LPIPS"
    fidelity = _extra("torch_fidelity.sample_similarity_lpips", "the distance LPIPS", instead)
    paths = [obtain("the distance LPIPS", published, None, progress, instead) for published in (LPIPS, VGG16)]
    for path in paths:
        read_state_dict(path)
    with _quiet():
        network = fidelity.SampleSimilarityLPIPS("lpips-vgg16").to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(255 * in_color(a), 255 * in_color(b)).flatten().cpu()

    return NamedDistance("lpips", " ".join(["lpips", *map(short_digest, paths)]), distance)


def lpips_is_here() -> bool:
    """Return whether the files that LPIPS needs are on the disk, and torch-fidelity is installed."""
    files = all((weights_folder() / published.name).is_file() for published in (LPIPS, VGG16))
    return files and importlib.util.find_spec("torch_fidelity") is not None


def _extra(module: str, what: str, instead: str = "use the extractor self, which needs nothing") -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs the extra 'metrics': install it with pip install -e '.[metrics]'; or {instead}."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of the libraries' own loading away from the user: the file was checked before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
