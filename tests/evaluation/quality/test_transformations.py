"""The extractor self: its training, its file, and what its features tell apart."""

import math

import pytest
import torch

from nvae.data.loaders.toy_faces import load_toy_faces
from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance
from nvae.evaluation.quality.extractors import transformations as module
from nvae.evaluation.quality.extractors.transformations import (
    ANSWERS,
    TransformationNetwork,
    load_self,
    train,
    transform,
    weights_path,
)
from nvae.system.errors import UserError
from nvae.system.torch_files import read_whole, write_whole


@pytest.fixture(scope="module")
def faces(make_config):
    dataset = {"name": "toy_faces", "training_images": 400, "validation_images": 1}
    return load_toy_faces(make_config(input_dimension=16, dataset=dataset)).training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "STEPS", 6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 28, 32, 64, 256])
def test_network_takes_every_size(channels, size):
    network = TransformationNetwork(channels, size).eval()
    assert network(torch.rand(2, channels, size, size)).shape == (2, 128)


@pytest.mark.slow
def test_training_is_deterministic(faces):
    first, second = train(faces), train(faces)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_training_changes_no_other_random_numbers(faces):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(faces)
    assert torch.equal(torch.rand(3), expected)


def test_features_of_the_training_images_have_mean_0_and_variance_1(faces):
    extractor = load_self(faces)
    features = extractor(faces.float() / 255)
    assert features.mean(0).abs().max() < 1e-3
    assert features.var(0, correction=0).mean() == pytest.approx(1, abs=1e-3)


def test_second_call_reads_the_file(faces, monkeypatch):
    first = load_self(faces)
    monkeypatch.setattr(module, "train", lambda *arguments: pytest.fail("trained again"))
    second = load_self(faces)
    assert second.digest == first.digest
    assert torch.equal(second(faces[:3].float() / 255), first(faces[:3].float() / 255))
    assert len(first.digest) == 12 and first.digest in first.key


def test_other_images_have_another_file(faces):
    assert weights_path(faces) != weights_path(faces[:-1])
    assert weights_path(faces, 5) != weights_path(faces, 8)


def test_folder_that_cannot_be_written_changes_nothing(faces, tmp_path, monkeypatch):
    first = load_self(faces)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "file"))
    assert load_self(faces).digest == first.digest


def test_given_file_is_used_for_other_images_of_the_size(faces, tmp_path):
    first = load_self(faces)
    copied = tmp_path / "other.weights"
    copied.write_bytes(weights_path(faces).read_bytes())
    assert load_self(faces[:50], file=copied).digest == first.digest
    assert not weights_path(faces[:50]).exists()


def test_given_file_of_another_size_is_refused(faces, tmp_path):
    load_self(faces)
    with pytest.raises(UserError, match="16"):
        load_self(torch.zeros(30, 3, 8, 8, dtype=torch.uint8), file=weights_path(faces))


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_given_file_that_is_damaged_or_missing_is_refused(faces, tmp_path, content):
    file = tmp_path / "a.weights"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="a.weights"):
        load_self(faces, file=file)


def test_damaged_file_in_the_cache_is_made_again(faces):
    first = load_self(faces)
    weights_path(faces).write_bytes(b"damaged")
    assert load_self(faces).digest == first.digest


def test_file_with_tensors_of_other_shapes_is_refused(faces):
    load_self(faces)
    content = read_whole(weights_path(faces))
    content["weights"]["mean"] = torch.zeros(3)
    write_whole(content, weights_path(faces), keep_previous=False)
    with pytest.raises(UserError, match="shapes"):
        load_self(faces)


def test_transform_without_changes_keeps_the_image(generator, monkeypatch):
    monkeypatch.setattr(module, "NOISE", 0.0)
    monkeypatch.setattr(module, "BLUR", 1e-3)
    images = torch.rand(3000, 1, 8, 8, generator=generator)
    transformed, labels = transform(images, generator)
    unchanged = {"rotation": 0, "row": 1, "column": 1, "scale": 1, "halves": 0}
    same = torch.stack([labels[name] == value for name, value in unchanged.items()]).all(0)
    assert same.any()
    torch.testing.assert_close(transformed[same], images[same], atol=1e-5, rtol=0)
    turned = torch.stack([labels[n] == (2 if n == "rotation" else v) for n, v in unchanged.items()]).all(0)
    torch.testing.assert_close(transformed[turned], images[turned].flip(2, 3), atol=1e-5, rtol=0)


def test_labels_are_answers_of_the_network(generator, faces):
    images, labels = transform(faces[:64].float() / 255, generator)
    assert images.min() >= 0 and images.max() <= 1
    assert {name: int(label.max()) + 1 for name, label in labels.items()} == ANSWERS
    assert TransformationNetwork(3, 16).loss(images, labels).isfinite()


@pytest.mark.slow
def test_training_learns(faces, monkeypatch, generator):
    monkeypatch.setattr(module, "STEPS", 80)
    monkeypatch.setattr(module, "TRAINING_BATCH", 64)
    images, labels = transform(faces[:200].float() / 255, generator)
    network = train(faces).eval()
    chance = sum(math.log(count) for count in ANSWERS.values())
    with torch.no_grad():
        assert network.loss(images, labels) < 0.9 * chance
        pooled = network.pooled(images)
        right = (network.answers["rotation"](pooled).argmax(1) == labels["rotation"]).float().mean()
    assert right > 0.4  # of four answers


@pytest.mark.slow
def test_worse_images_are_farther_away(faces, monkeypatch, generator):
    """As a person ranks them: other images, stronger and stronger noise, blends of two images, noise alone."""
    monkeypatch.setattr(module, "STEPS", 80)
    monkeypatch.setattr(module, "TRAINING_BATCH", 64)
    extractor = load_self(faces)
    images = faces.float() / 255
    real, other = images[:200], images[200:]

    def distance(changed):
        statistics = FeatureStatistics.of(extractor(changed.clamp(0, 1)))
        return frechet_distance(statistics, FeatureStatistics.of(extractor(real)))

    noise = torch.randn(other.shape, generator=generator)
    ranked = [other, other + 0.15 * noise, other + 0.4 * noise, torch.rand(other.shape, generator=generator)]
    distances = [distance(changed) for changed in ranked]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[1]
    assert distance((other + other.roll(1, 0)) / 2) > 3 * distances[0]
    assert distance(other[:1].expand_as(other)) > 3 * distances[0]
