"""From a config to a model."""

from __future__ import annotations

import torch

from nvae.config import Config
from nvae.model.hierarchy import HierarchicalVAE
from nvae.model.nvae import build_nvae

FAMILIES = {"nvae": build_nvae}


def build_model(config: Config) -> HierarchicalVAE:
    """The model that a config describes, with fresh weights that its seed determines.

    Leaves torch's own random state as it was. Build under `torch.device("meta")` to get shapes without memory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training_parameters.seed)
        return FAMILIES[config.family](config).to(memory_format=torch.channels_last)
