"""The quality of samples of a model: what is compared with what, and what every result says."""

import dataclasses
import json
import math

import pytest
import torch

from nvae.data.images import Data
from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.measure import (
    METRICS,
    Settings,
    in_8_bits,
    measure_quality,
    reference_images,
)
from nvae.evaluation.quality.path_length import NamedDistance
from nvae.evaluation.quality.report import report, to_dict
from nvae.inference.sampling import Sampler
from nvae.system.errors import InvalidValueError, UserError

SETTINGS = Settings(images=24, neighbors=(3,), pairs=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))


def pixels(name="pixels", continuous=True):
    """An extractor whose features are means of quarters of an image."""

    def features(images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    return Extractor(name, "0123456789ab", 12, "test", features, torch.device("cpu"), continuous)


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def data(generator):
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images[:50], images[50:])


def measure(model, data, settings=SETTINGS, temperatures=(0.7,), extractors=None, **options):
    samplers = [Sampler(model, temperature, iterations=2) for temperature in temperatures]
    return measure_quality(model, data, extractors or [pixels()], samplers, settings, **options)


def test_all_metrics(model, data):
    quality = measure(model, data, temperatures=(0.5, 1.0))
    assert [row.temperature for row in quality.rows] == [0.5, 1.0]
    for row in quality.rows:
        features = row.features["pixels"]
        assert features.fid > 0 and math.isfinite(features.kid.mean) and list(features.manifolds) == [3]
        assert row.path_lengths["pixels"].mean > 0
        assert len(row.copies.difference) == 24 and row.copies.count == 0
        assert row.seconds_per_image > 0
    assert quality.reference_images == 24 and len(quality.movement) == 4
    assert quality.real.features["pixels"].fid < min(row.features["pixels"].fid for row in quality.rows)


def test_frechet_distance_is_that_of_the_first_seeds_in_8_bits(model, data):
    quality = measure(model, data, Settings(("fid",), 24, (3,), seed=5))
    samples = Sampler(model, 0.7, iterations=2).sample(range(5, 29))
    reference = reference_images(data, "training", model.config, 24, "mean")
    real = data.training[reference.own].float() / 255
    statistics = [FeatureStatistics.of(pixels()(images)) for images in (in_8_bits(samples), real)]
    assert quality.rows[0].features["pixels"].fid == pytest.approx(frechet_distance(*statistics), rel=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_one_metric_computes_nothing_else(model, data, metric):
    quality = measure(model, data, SETTINGS._replace(metrics=(metric,)))
    (row,) = quality.rows
    features = row.features.get("pixels")
    measured = {
        "fid": features is not None and features.fid is not None,
        "kid": features is not None and features.kid is not None,
        "precision-recall": features is not None and features.manifolds is not None,
        "ppl": bool(row.path_lengths),
        "copies": row.copies is not None,
    }
    assert [name for name, is_there in measured.items() if is_there] == [metric]
    assert (quality.movement is not None) == (metric == "ppl")


def test_second_call_takes_the_samples_from_the_disk(model, data, monkeypatch):
    first = measure(model, data)
    monkeypatch.setattr(Sampler, "sample", None)  # not called
    second = measure(model, data)
    assert first.rows[0].features == second.rows[0].features


def test_path_lengths_of_other_weights_are_measured_anew(model, data):
    settings = SETTINGS._replace(metrics=("ppl",))

    def lengths(factor, digest, lpips_key):
        extractor = pixels()
        twice = dataclasses.replace(extractor, digest=digest, network=lambda images: factor * extractor.network(images))
        lpips = NamedDistance("lpips", lpips_key, lambda a, b: factor * (a - b).square().sum((1, 2, 3)))
        row = measure(model, data, settings, extractors=[twice], lpips=lpips).rows[0]
        return [row.path_lengths[name].mean for name in ("pixels", "lpips")]

    first = lengths(1, "a", "a")
    assert lengths(1, "b", "a") == pytest.approx(first)
    assert lengths(3, "c", "a") == pytest.approx([9 * first[0], 3 * first[1]], rel=1e-4)
    assert lengths(2, "a", "b") == pytest.approx([4 * first[0], 2 * first[1]], rel=1e-4)
    assert lengths(2, "a", "a") == first  # from the disk


def test_report_says_what_is_compared(make_model, generator):
    dataset = {"name": "mnist", "binarize": True}
    model = make_model(sampling_method="bernoulli", image_channels=1, dataset=dataset)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    quality = measure(model, Data(images[:30], images[30:]), SETTINGS._replace(pixels="sample"))
    lines = report(quality, model, "mnist").splitlines()
    assert lines[0] == "24 samples, draws from p(x|z), against 24 training images of mnist"
    assert "other real images: not measured" in "".join(lines)
    for start in ("path length", "temperature 0.7: 0 of 24"):
        assert "means of p(x|z)" in next(line for line in lines if line.startswith(start))
    copies = quality._replace(settings=quality.settings._replace(metrics=("copies",)), extractors=[])
    assert report(copies, model, "mnist").splitlines()[0] == "24 samples, draws from p(x|z)"


def test_other_images_have_other_features(model, data):
    reference = reference_images(data, "training", model.config, 24, "mean")
    before = reference.key(reference.own)
    data.training[reference.own[5], 0, 0, 0] += 1
    assert reference.key(reference.own) != before
    assert reference.key(reference.own[:20]) != before


def test_copies_are_found_in_means_of_a_binary_model(make_model, generator):
    dataset = {"name": "mnist", "binarize": True}
    model = make_model(sampling_method="bernoulli", image_channels=1, dataset=dataset)
    means = Sampler(model, 0.7, iterations=2).sample(24).mul(255).round().byte()
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    data = Data(torch.cat([images, means[2:4]]), images[:10])
    copies = measure(model, data, SETTINGS._replace(metrics=("copies",), pixels="sample")).rows[0].copies
    assert copies.difference[2:4].max() == 0 and copies.nearest[2:4].tolist() == [60, 61]


def test_other_weights_are_sampled_anew(model, data, make_model):
    settings = SETTINGS._replace(metrics=("fid",))
    first, other = (measure(of, data, settings).rows[0].features["pixels"].fid for of in (model, make_model(seed=1)))
    assert first != other


def test_model_is_unchanged(model, data):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def test_planted_training_images_are_found(model, data):
    samples = Sampler(model, 0.7, iterations=2).sample(24).mul(255).round().byte()
    planted = Data(torch.cat([data.training, samples[3:5]]), data.validation)
    copies = measure(model, planted, SETTINGS._replace(metrics=("copies",))).rows[0].copies
    assert copies.difference[3:5].max() == 0
    assert copies.nearest[3:5].tolist() == [50, 51]


def test_statistics_of_a_file_replace_those_of_the_images(model, data):
    statistics = FeatureStatistics(torch.zeros(12).double(), torch.eye(12).double(), 100)
    given = measure(model, data, statistics={"pixels": statistics}).rows[0].features["pixels"]
    own = measure(model, data).rows[0].features["pixels"]
    assert given.fid != own.fid and given.kid == own.kid and given.manifolds == own.manifolds


@pytest.mark.parametrize(("images", "in_file", "expected"), [(20, 1000, True), (24, 24, True), (25, 25, False)])
def test_frechet_distance_of_no_more_images_than_features_is_named(model, data, images, in_file, expected):
    """24 features, and 20 or 24 or 25 samples and images; or a file of statistics of few images."""
    extractor = dataclasses.replace(pixels(), dimensions=24, network=lambda images: images[:, :, :2, :4].flatten(1))
    statistics = {"pixels": FeatureStatistics.of(torch.randn(in_file, 24))}
    settings = SETTINGS._replace(images=images)
    quality = measure(model, data, settings, extractors=[extractor])
    rows = [*quality.rows, quality.real]
    assert {row.features["pixels"].too_few_images for row in rows} == {expected}
    assert to_dict(quality)["rows"][0].get("fid_pixels_has_too_few_images", False) is expected
    assert ("no number to compare" in report(quality, model, "toy_faces")) is expected
    quality = measure(model, data, settings, extractors=[extractor], statistics=statistics)
    assert quality.rows[0].features["pixels"].too_few_images is expected


def test_path_lengths_need_continuous_features(model, data):
    row = measure(model, data, extractors=[pixels("coarse", False), pixels()]).rows[0]
    assert list(row.path_lengths) == ["pixels"] and list(row.features) == ["coarse", "pixels"]
    quality = measure(model, data, extractors=[pixels("coarse", False)])
    assert quality.rows[0].path_lengths == {} and "path lengths" in report(quality, model, "toy_faces")


def test_too_few_other_images_give_no_row_of_real_images(model, data):
    assert measure(model, data, SETTINGS._replace(images=26)).real is None
    assert measure(model, data, SETTINGS._replace(images=25)).real is not None


def test_reference_images_are_disjoint_and_the_same_in_every_call(data, config):
    reference = reference_images(data, "training", config, 20, "mean")
    again = reference_images(data, "training", config, 20, "mean")
    assert torch.equal(reference.own, again.own) and torch.equal(reference.others, again.others)
    assert len(set(reference.own.tolist()) | set(reference.others.tolist())) == 40
    assert torch.equal(reference.get(reference.own), data.training[reference.own].float() / 255)
    assert reference_images(data, "training", config, None, "mean").own.tolist() == list(range(50))


def test_drawn_pixels_of_a_binary_model_are_compared_with_binary_images(make_config, generator):
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    dataset = {"name": "mnist", "binarize": True}
    config = make_config(sampling_method="bernoulli", image_channels=1, dataset=dataset)
    data = Data(images[:30], images[30:])
    binary, gray = (reference_images(data, "training", config, 10, pixels) for pixels in ("sample", "mean"))
    assert set(binary.get(binary.own).unique().tolist()) == {0, 1}
    assert len(gray.get(gray.own).unique()) > 100


def test_missing_part_is_refused(model, data):
    with pytest.raises(UserError, match="test part"):
        measure(model, data, part="test")


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": ("is",)},
        {"metrics": ()},
        {"images": 19},
        {"neighbors": (0,)},
        {"neighbors": (24,)},
        {"ppl_groups": 5},
        {"seed": -1},
    ],
)
def test_wrong_settings_are_refused(model, data, changes):
    with pytest.raises(InvalidValueError):
        measure(model, data, SETTINGS._replace(**changes))


def test_more_neighbors_than_images_are_refused(model, data):
    with pytest.raises(InvalidValueError, match="validation images"):
        measure(model, data, SETTINGS._replace(neighbors=(12,)), part="validation")


def test_report_names_the_extractor_of_every_number(model, data):
    quality = measure(model, data, temperatures=(0.5, 1.0), extractors=[pixels("one"), pixels("two")])
    text = report(quality, model, "toy_faces")
    for name in ("one", "two"):
        assert f"FID({name})" in text and f"KID({name})" in text and f"PPL({name})" in text
    assert to_dict(quality)["movement_temperature"] == 1.0
    assert "0123456789ab" in text and "24 samples" in text
    assert "FID " not in text.replace("FID(", "")
    content = json.loads(json.dumps(to_dict(quality), allow_nan=False))
    assert {"fid_one", "kid_two", "precision_k3_one", "coverage_k3_two", "ppl_one"} <= set(content["rows"][0])
    assert not any(key in content["rows"][0] for key in ("fid", "kid", "ppl"))
    assert len(content["rows"][1]["most_alike"]) == 8
    assert content["real"]["temperature"] is None


def test_works_for_a_model_with_a_diffusion_prior(make_dvp, data):
    model = make_dvp()
    quality = measure(model, data)
    assert math.isfinite(quality.rows[0].features["pixels"].fid)
    assert len(quality.movement) == len(model.groups)
