"""A run as files: its folder with metrics, events, pictures and config, and its checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from nvae.checkpoint import checkpoint_path, save
from nvae.config import config_to_yaml

NAME = "small"


def metrics_line(epoch):
    """Line of an epoch of 100 steps of 4 images, at 20 images per second; the best validation is that of epoch 3."""
    kl = [0.001, 0.5, 1.0 + epoch, 2.0]
    elbo = -300.0 - 10 * abs(epoch - 3)
    return {
        "step": 100 * epoch,
        "epoch": float(epoch),
        "images": 400 * epoch,
        "loss": 400.0 - epoch,
        "kl_per_group": kl,
        "gradient_norm": 3.0,
        "gradient_norm_max": 300.0 / epoch,
        "kl": sum(kl),
        "elbo": elbo - 5,
        "bits_per_dimension": 2.5,
        "learning_rate": 0.01,
        "kl_coefficient": 1.0,
        "skipped_steps": 2,
        "images_per_second": 20.0,
        "validation_elbo": elbo,
        "validation_bits_per_dimension": 2.0 + 0.1 * abs(epoch - 3),
        "validation_kl_per_group": kl,
    }


EVENTS = [
    {"step": 0, "epoch": 0.0, "kind": "started", "text": "training started"},
    {"step": 250, "epoch": 2.5, "kind": "recovery", "text": "the loss became NaN: back to step 200"},
    {"step": 400, "epoch": 4.0, "kind": "stopped", "text": "SIGTERM received"},
]
ESTIMATE = {"mean": -310.25, "standard_error": 1.5}
EVALUATION = {
    "images": 50,
    "samples": 10,
    "part": "test",
    "is_normalized": True,
    "is_bound": True,
    "elbo": ESTIMATE,
    "elbo_bits": ESTIMATE,
} | {
    "log_likelihood": ESTIMATE,
    "log_likelihood_bits": ESTIMATE,
}


@pytest.fixture
def run_folder(make_model, folder):
    """A working directory with a run of 4 of 5 epochs: runs/small/ and saved_weights/small.checkpoint."""
    model = make_model(training_parameters={"epochs": 5})
    progress = {"epoch": 4, "image": 0, "step": 400, "images_seen": 1600, "skipped_steps": 2, "consecutive_skips": 0}
    history = {"validations": [(float(e), metrics_line(e)["validation_elbo"]) for e in range(1, 5)]}
    metadata = {"kl_per_group": metrics_line(4)["kl_per_group"], "events": EVENTS[1:2]}
    save(model, checkpoint_path(NAME), {"progress": progress, "history": history}, metadata)
    run = folder / "runs" / NAME
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(config_to_yaml(model.config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(metrics_line(e)) + "\n" for e in range(1, 5)))
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for step in (100, 200, 300, 400):
        Image.fromarray(noise // (step // 100)).save(run / "samples" / f"step_{step:08d}.png")
    for name in ("samples", "reconstructions", "data"):
        Image.fromarray(noise).resize((400, 200)).save(run / f"{name}.png")
    return run
