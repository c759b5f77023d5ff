"""The pictures of a run."""

from __future__ import annotations

import torch

from nvae.data.images import Data, to_float
from nvae.training.report import previews


def test_reconstructions_are_of_the_images_that_the_encoder_sees(make_model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(previews, "reconstruct", lambda model, images: seen.append(images) or images)
    images_u8 = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = make_model(pixel_bits=5, encoder_bits=8, sampling_method="logistic_mixture")
    previews.draw_reconstructions(model, Data(images_u8, images_u8), tmp_path, 0)
    assert torch.equal(seen[0], to_float(images_u8, "cpu"))
