"""What a run leaves behind in runs/NAME/: its config, its numbers, its curves; TensorBoard too, when installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvae.config import config_to_yaml
from nvae.errors import UserError
from nvae.schema import ModelConfig

FOLDER = Path("runs")


class Records:
    """The folder of a run. Opening it at a step forgets what was noted after that step."""

    def __init__(self, name: str, config: ModelConfig, step: int) -> None:
        self.folder = FOLDER / name
        self.metrics_file = self.folder / "metrics.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
            self.metrics = [entry for entry in read_metrics(self.metrics_file) if entry["step"] <= step]
            unfinished = self.metrics_file.with_suffix(".unfinished")
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in self.metrics))
            unfinished.replace(self.metrics_file)
            self._tensorboard = _tensorboard(self.folder, step)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error}); make room or mend the folder.") from error

    def note(self, entry: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and to TensorBoard."""
        self.metrics.append(entry)
        try:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self._note_in_tensorboard(entry)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error}); make room, and run it again.") from error

    def _note_in_tensorboard(self, entry: dict[str, Any]) -> None:
        if self._tensorboard is None:
            return
        for key, value in entry.items():
            values = {f"{key}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
            for tag, number in values.items():
                self._tensorboard.add_scalar(tag, number, entry["step"])
        self._tensorboard.flush()

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; a last line that was cut off is left out."""
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _tensorboard(folder: Path, step: int) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
