"""Deep hierarchical VAEs for one computer: train, sample, pick, explore.

    # pip install nvae-at-home
    import nvae

    config = nvae.load_config("quickstart")
    path = nvae.train(config, "quickstart")  # writes saved_weights/ and runs/; call again to continue
    sampler = nvae.open_sampler(path, temperature=0.7)  # recalibrates the batch norms at the first use
    model = sampler.model
    images = sampler.sample(16)  # (16, 3, 32, 32) in [0, 1], of the seeds 0 to 15
    between = nvae.interpolate(sampler, sampler.noise([0]), sampler.noise([1]), 8)
    resampled = nvae.explore(sampler, nvae.base_point(sampler, sampler.noise([3])))  # one tensor per latent group
    again = nvae.reconstruct(model, images)
    evaluation = nvae.evaluate(model, (255 * images).round().byte(), samples=10)  # ELBO, log p(x), KL

Importing this package does not import torch; using one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODULES = {
    "HierarchicalVAE": "nvae.models.hierarchy",
    "ModelConfig": "nvae.schema",
    "Sampler": "nvae.inference.sampling",
    "UserError": "nvae.system.errors",
    "base_point": "nvae.inference.exploration",
    "build_model": "nvae.models.families",
    "encode": "nvae.inference.reconstruction",
    "evaluate": "nvae.evaluation.likelihood",
    "explore": "nvae.inference.exploration",
    "interpolate": "nvae.inference.interpolation",
    "load_config": "nvae.config",
    "load_model": "nvae.checkpoint",
    "open_sampler": "nvae.inference.sampling",
    "reconstruct": "nvae.inference.reconstruction",
    "save": "nvae.checkpoint",
    "train": "nvae.training.loop",
}

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
