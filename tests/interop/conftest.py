"""Fixtures of the import tests: checkpoint files, recorded models, and passes to compare."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nvae.config import config_from_dict
from nvae.interop.importer import import_checkpoint
from nvae.models.hierarchy import FromNoise, FromPosterior, HierarchicalVAE
from nvae.objective import elbo_terms

STRIDE = 8  # recordings hold every eighth row and column of their images


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    """The original's command-line settings for a small network."""
    numbers = {
        "num_latent_scales": 2,
        "num_groups_per_scale": 2,
        "num_latent_per_group": 2,
        "min_groups_per_scale": 1,
        "num_channels_enc": 4,
        "num_channels_dec": 6,
        "num_preprocess_blocks": 1,
        "num_preprocess_cells": 1,
        "num_cell_per_cond_enc": 1,
        "num_postprocess_blocks": 1,
        "num_postprocess_cells": 1,
        "num_cell_per_cond_dec": 1,
        "num_mixture_dec": 2,
        "num_x_bits": 8,
        "num_nf": 0,
    }
    switches = {"ada_groups": True, "use_se": True, "res_dist": False}
    return numbers | switches | {"dataset": "celeba_64", "arch_instance": "res_mbconv"}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """A function that saves something with torch and returns the path."""

    def file(content: Any, name: str = "checkpoint.pt", **options: Any) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return file


@pytest.fixture(scope="session")
def imported(recording, tmp_path_factory) -> Callable[..., HierarchicalVAE]:
    """A function: the model of a recording, imported from a checkpoint in the format of its program."""

    @functools.cache
    def load(name: str) -> HierarchicalVAE:
        content, path = recording(name), tmp_path_factory.mktemp("checkpoints") / "checkpoint.pt"
        checkpoint = {"epoch": 4, "state_dict": content["state_dict"], "optimizer": {"state": {}}}
        if "args" in content:
            torch.save(checkpoint | {"args": argparse.Namespace(**content["args"])}, path)
            return import_checkpoint(path).model
        torch.save(checkpoint | {"model_arch": "elsewhere/x.yaml"}, path)
        return import_checkpoint(path, config_from_dict(content["config"], name)).model

    def imported(name: str, dtype: torch.dtype = torch.float32) -> HierarchicalVAE:
        return copy.deepcopy(load(name)).to(dtype)

    return imported


class Passes:
    """Passes of a model over the images and the noise of a recording."""

    def __init__(self, model: HierarchicalVAE, recording: dict[str, Any]) -> None:
        self.model, self.recording = model, recording
        self.dtype = next(model.parameters()).dtype

    def posterior(self) -> dict[str, Tensor]:
        """Return results of the posterior pass by name. Recorded images include the padding, so ours is skipped."""
        images, padding = self.recording["x"].to(self.dtype), self.model.config.padding
        source = FromPosterior(self.model.encoder(images), noise=self._noise(self.recording["noise"]))
        result, logits = self._top_down(source)
        side = images.shape[-1]
        inside = images[..., padding : side - padding, padding : side - padding]
        terms = elbo_terms(result, inside)
        groups = [result.groups[i] for i in sorted(result.groups)]
        log_q, log_p = (torch.stack([getattr(group, key) for group in groups], 1) for key in ("log_q", "log_p"))
        return {
            "logits": some(logits),
            "kl": result.kl,
            "kl_at_the_sample": log_q - log_p,
            "log_q": log_q.sum(1),
            "log_p": log_p.sum(1),
            "log_likelihood": terms.log_likelihood,
            "reconstruction": -terms.log_likelihood,
            "log_importance_weight": terms.log_likelihood + log_p.sum(1) - log_q.sum(1),
            "log_p_subpixel": some(result.px_z.log_prob(inside)),
            "mean": some(result.px_z.mean()),
            "most_likely": some(result.px_z.most_likely()),
        }

    def prior(self, expected: dict[str, Any]) -> dict[str, Tensor]:
        """Return results of the prior pass by name, with the recorded noise and temperature."""
        result, logits = self._top_down(FromNoise(self._noise(expected["noise"]), expected["temperature"]))
        return {"logits": some(logits), "mean": some(result.px_z.mean())}

    def _noise(self, noise: list[Tensor]) -> list[Tensor]:
        return [eps.to(self.dtype) for eps in noise]

    def _top_down(self, source: Any) -> tuple[Any, Tensor]:
        logits: list[Tensor] = []
        hook = self.model.output.register_forward_hook(lambda module, inputs, output: logits.append(output))
        result = self.model.top_down(source, len(self.recording["x"]))
        hook.remove()
        return result, logits[0]


def some(images: Tensor) -> Tensor:
    return images[..., ::STRIDE, ::STRIDE]


@pytest.fixture(scope="session")
def passes(imported, recording) -> Callable[..., Passes]:
    """A function: the passes of a recording's model."""
    return lambda name, dtype=torch.float32: Passes(imported(name, dtype), recording(name))


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """A function that compares with a tolerance relative to the recording's largest value, because terms cancel."""

    def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
        assert actual.shape == expected.shape
        atol = tolerance * expected.abs().max().item()
        torch.testing.assert_close(actual.detach().to(expected.dtype), expected, rtol=tolerance, atol=atol)
        assert expected.abs().max() > 0

    return assert_close
