"""The registry of model families: from a dictionary to a config class, and from a config to a model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from nvae.schema import ModelConfig
from nvae.system.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor

    from nvae.models.hierarchy import HierarchicalVAE


class Family(NamedTuple):
    """The package of a family, the class in its config.py, and the class in its network.py."""

    package: str
    config: str
    network: str


FAMILIES = {
    "nvae": Family("nvae.models.nvae", "NVAEConfig", "NVAE"),
    "ladder": Family("nvae.models.ladder", "LadderConfig", "LadderVAE"),
    "dvp": Family("nvae.models.dvp", "DVPConfig", "DVPVAE"),
    "vdvae": Family("nvae.models.vdvae", "VDVAEConfig", "VDVAE"),
}
DEFAULT_FAMILY = "nvae"  # the seed's files name no family


def config_class(data: Mapping[str, Any]) -> type[ModelConfig]:
    """Return the class that validates a config's dictionary: the class of its `family`, or of the default family.

    Raises InvalidValueError for an unknown family.
    """
    name = data.get("family", DEFAULT_FAMILY)
    if not isinstance(name, str) or name not in FAMILIES:
        raise InvalidValueError("family", name, " or ".join(map(repr, FAMILIES)))
    family = FAMILIES[name]
    return getattr(import_module(f"{family.package}.config"), family.config)


def build_model(config: ModelConfig) -> HierarchicalVAE:
    """Build the model of a config, with new weights from the config's seed.

    Torch's global random state does not change. Build under `torch.device("meta")` to get shapes without memory.
    """
    import torch  # here, so that reading a config does not load torch

    family = FAMILIES[config.family]
    network = getattr(import_module(f"{family.package}.network"), family.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training_parameters.seed)
        model = network(config)
    for parameter in model.parameters():  # not buffers: they are sent as they lie in memory
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def build_with_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> HierarchicalVAE:
    """Build the model of a config on the CPU, in evaluation mode, without gradients, with copies of these weights.

    weights: a whole state dictionary. No initial weights are drawn. Buffers that are not saved, `persistent=False`, are
    computed as in `build_model`, and must not be random.
    """
    from nvae.models.initialization import WithoutDraws

    with WithoutDraws():
        model = build_model(config)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def clone(model: HierarchicalVAE) -> HierarchicalVAE:
    """Return a copy of a model on its device, in evaluation mode, without gradients, with ordinary batch norms."""
    return build_with_weights(model.config, model.state_dict()).to(model.device)
