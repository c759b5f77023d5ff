"""Keep recalibrated batch-norm statistics in a file: beside a model in saved_weights/, else in the cache folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from nvae.checkpoint import FOLDER, weights_digest
from nvae.data.cache import cache_folder
from nvae.inference.recalibration import PASS_IMAGES, Statistics
from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.files import root_folder
from nvae.system.torch_files import CheckpointError, content_digest, read_whole, write_whole

MAX_ENTRIES = 50  # besides those of `InterpolatedStatistics`


class StatisticsCache:
    """The recalibrated statistics of a model, by temperature and iterations.

    The file is `<model file>.statistics` for a model in saved_weights/ of `root_folder`. It is in the cache folder for
    any other model, which a JSON file of somebody else may name: nothing is written beside that.
    The file names the weights and the architecture that its statistics belong to. A file of another model, of an older
    format or with damage counts as empty. A file that cannot be written is skipped. The newest entries are kept,
    `max_entries` of them.
    """

    def __init__(self, model: HierarchicalVAE, model_path: str | Path) -> None:
        self.model = model
        self.max_entries = MAX_ENTRIES + 1 + 2 * len(model.groups)
        self.weights = weights_digest(model)
        architecture = model.config.model_dump(exclude={"training_parameters", "dataset"})
        self.owner = {"weights": self.weights, "architecture": repr(sorted(architecture.items()))}
        if Path(model_path).parent.resolve() == (root_folder() / FOLDER).resolve():
            self.path = Path(f"{model_path}.statistics")
        else:
            self.path = cache_folder() / "statistics" / content_digest(self.owner)

    def find(self, temperature: list[float], iterations: int) -> Statistics | None:
        """Return the statistics of a temperature per latent group, on the model's device; None if there are none."""
        entry = self._entries().get(_key(temperature, iterations), {})
        with suppress(KeyError, TypeError, AttributeError):  # damaged, or of an older format
            means, variances = self._tensors(entry["means"]), self._tensors(entry["variances"])
            if list(means) == list(variances):
                return Statistics(means, variances, float(entry["uncertainty"]))
        return None

    def _tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raise AttributeError or TypeError for anything but finite tensors of the model's batch norms, by name."""
        for name, tensor in tensors.items():
            if tensor.shape != self.model.get_submodule(name).running_mean.shape or not tensor.isfinite().all():
                raise TypeError(name)
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    def keep(self, temperature: list[float], iterations: int, statistics: Statistics) -> None:
        """Add the statistics of a temperature per latent group to the file."""
        entries = self._entries()
        entries.pop(_key(temperature, iterations), None)  # the newest entries come last
        entries[_key(temperature, iterations)] = {
            "means": {name: tensor.cpu() for name, tensor in statistics.means.items()},
            "variances": {name: tensor.cpu() for name, tensor in statistics.variances.items()},
            "uncertainty": statistics.uncertainty,
        }
        newest = dict(list(entries.items())[-self.max_entries :])
        with suppress(CheckpointError):
            write_whole({"owner": self.owner, "statistics": newest}, self.path, keep_previous=False)

    def _entries(self) -> dict[str, Any]:
        try:
            content = read_whole(self.path)
        except CheckpointError:  # absent or damaged
            return {}
        entries = content.get("statistics") if content.get("owner") == self.owner else None
        return entries if isinstance(entries, dict) else {}


def _key(temperature: list[float], iterations: int) -> str:
    return f"{temperature}, {iterations} passes of {PASS_IMAGES}"
