from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nvae.data.images import Data
from nvae.schema import ModelConfig
from nvae.training import loop
from nvae.training.events import Event
from nvae.training.loop import train
from nvae.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _half_precision_on_every_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)


@pytest.fixture
def schedule() -> dict[str, Any]:
    """Training parameters with which everything that evolves matters within a few steps."""
    return {"batch_size": 4, "epochs": 3, "warmup_epochs": 2.0, "regularization_constant": 0.1, "learning_rate": 0.01}


@pytest.fixture
def data() -> Data:
    """Fourteen training images: three batches of four, two images left over in each epoch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Data(images[:14], images[14:])


@pytest.fixture
def make_trainer(
    make_config: Callable[..., ModelConfig], schedule: dict[str, Any], data: Data
) -> Callable[..., Trainer]:
    """A function: a new trainer, with some training parameters changed, and some keys of the `model`'s config."""

    def make(model: dict[str, Any] | None = None, device: str = "cpu", **changes: Any) -> Trainer:
        config = make_config(training_parameters=schedule | changes, **(model or {}))
        return Trainer(config, data, torch.device(device))

    return make


@pytest.fixture
def run(
    make_config: Callable[..., ModelConfig],
    schedule: dict[str, Any],
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Path, list[Event]]]:
    """A function: train the tiny config in tmp_path with some parameters changed; returns the path and the events."""
    monkeypatch.setattr(loop, "load_data", lambda config, progress: data)

    def run(model=None, fresh=False, on_event=None, name="small", checkpoint=None, **changes):
        config, events = make_config(training_parameters=schedule | changes, **(model or {})), []
        options = {"folder": tmp_path, "progress": False, "on_event": on_event or events.append}
        return train(config, name, "cpu", fresh, checkpoint=checkpoint, **options), events

    return run
