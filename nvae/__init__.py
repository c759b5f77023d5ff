"""Deep hierarchical VAEs for one computer: train, sample, pick, explore.

The public API:

    config = load_config("quickstart")        # a YAML file, validated
    model = build_model(config)               # a HierarchicalVAE with fresh weights
    model = load_model("saved_weights/quickstart.checkpoint")
    save(model, "my.model")
"""

from nvae.checkpoint import load_model, save
from nvae.config import load_config
from nvae.errors import UserError
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig

__all__ = ["HierarchicalVAE", "ModelConfig", "UserError", "build_model", "load_config", "load_model", "save"]
