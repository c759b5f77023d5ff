"""Deep hierarchical VAEs for one computer: train, sample, pick, explore.

The public API:

    config = load_config("quickstart")        # a YAML file, validated
    model = build_model(config)               # a HierarchicalVAE with fresh weights
    model = load_model("saved_weights/quickstart.checkpoint")
    save(model, "my.model")
"""

from nvae.checkpoint import load_model, save
from nvae.config import Config, load_config
from nvae.errors import UserError
from nvae.model.build import build_model
from nvae.model.hierarchy import HierarchicalVAE

__all__ = ["Config", "HierarchicalVAE", "UserError", "build_model", "load_config", "load_model", "save"]
