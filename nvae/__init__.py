"""Deep hierarchical VAEs for one computer: train, sample, pick, explore.

The public API:

    config = load_config("quickstart")        # a YAML file, validated
    model = build_model(config)               # a HierarchicalVAE with fresh weights
    model = load_model("saved_weights/quickstart.checkpoint")
    save(model, "my.model")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvae.checkpoint import load_model, save
    from nvae.config import load_config
    from nvae.errors import UserError
    from nvae.models.families import build_model
    from nvae.models.hierarchy import HierarchicalVAE
    from nvae.schema import ModelConfig

__all__ = ["HierarchicalVAE", "ModelConfig", "UserError", "build_model", "load_config", "load_model", "save"]

_MODULES = {
    "HierarchicalVAE": "models.hierarchy",
    "ModelConfig": "schema",
    "UserError": "errors",
    "build_model": "models.families",
    "load_config": "config",
    "load_model": "checkpoint",
    "save": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a command's --help must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'nvae' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nvae.{_MODULES[name]}"), name)
