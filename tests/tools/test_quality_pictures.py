"""Pictures of the quality of samples."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from nvae.data.images import Data
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.measure import Settings, measure_quality, reference_images
from nvae.inference.sampling import Sampler
from nvae.tools.quality_pictures import draw_copies, draw_quality, draw_samples_beside_real


@pytest.fixture(scope="module")
def measured(make_model, tmp_path_factory):
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=generator, dtype=torch.uint8)
    data = Data(images[:50], images[50:])
    extractor = Extractor("pixels", "0", 192, "test", lambda x: x.flatten(1), torch.device("cpu"))
    samplers = [Sampler(model, temperature, iterations=0) for temperature in (0.5, 1.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        quality = measure_quality(model, data, [extractor], samplers, Settings(images=20, pairs=4))
    return model, data, samplers, quality


@pytest.mark.slow
@pytest.mark.parametrize("kl", [None, [1.0, 2.0, 3.0, 4.0]])
def test_charts(measured, kl, tmp_path):
    model, _, _, quality = measured
    draw_quality(quality, model, kl).savefig(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 300


def test_nothing_is_drawn_of_one_temperature_without_path_lengths(measured):
    model, _, _, quality = measured
    single = quality._replace(rows=quality.rows[:1], movement=None)
    assert draw_quality(single, model, None) is None


def test_samples_are_drawn_beside_real_images(measured):
    _, data, samplers, quality = measured
    config = samplers[0].model.config
    few, many = (reference_images(data, "training", config, count, "mean") for count in (3, 20))
    few, many = (draw_samples_beside_real(quality, samplers, reference, "mean") for reference in (few, many))
    assert few.size == many.size and few != many
    assert few.height == 4 + 3 * 68


def test_copies_are_marked(measured):
    _, data, samplers, quality = measured
    row = quality.rows[1]
    plain = draw_copies(row.copies, samplers[1], data.training, 0, "mean")
    copies = replace(row.copies, difference=torch.zeros_like(row.copies.difference))
    marked = draw_copies(copies, samplers[1], data.training, 0, "mean")
    assert plain.size == marked.size
    frame = (220, 40, 90)
    assert frame not in {color for _, color in plain.getcolors(10**6)}
    assert frame in {color for _, color in marked.getcolors(10**6)}
