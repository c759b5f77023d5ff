"""Deep hierarchical VAEs for one computer: train, sample, pick, explore.

The public API:

    config = load_config("quickstart")        # a YAML file, validated
    model = build_model(config)               # a HierarchicalVAE with fresh weights
    model = load_model("saved_weights/quickstart.checkpoint")
    save(model, "my.model")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvae.checkpoint import load_model, save
    from nvae.config import load_config
    from nvae.errors import UserError
    from nvae.models.families import build_model
    from nvae.models.hierarchy import HierarchicalVAE
    from nvae.schema import ModelConfig

__all__ = ["HierarchicalVAE", "ModelConfig", "UserError", "build_model", "load_config", "load_model", "save"]

# Imported at first use: `import nvae.config` needs no torch.
_MODULES = {
    "HierarchicalVAE": "nvae.models.hierarchy",
    "ModelConfig": "nvae.schema",
    "UserError": "nvae.errors",
    "build_model": "nvae.models.families",
    "load_config": "nvae.config",
    "load_model": "nvae.checkpoint",
    "save": "nvae.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nvae' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
