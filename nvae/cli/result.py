"""The picture or animation that a command makes: its name, its metadata, where it is saved, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from nvae.checkpoint import name_of_file
from nvae.cli.arguments import animation_format, chosen_pixels, command_line
from nvae.cli.progress import with_progress
from nvae.inference.arguments import format_values
from nvae.inference.sampling import Sampler
from nvae.tools.animation import save_animation
from nvae.tools.display import show
from nvae.tools.grids import is_file_name, result_name, save_result

USUAL = {"pixels": "mean", "strength": 1.0, "jams": 1}  # values that are in no file name


class Result:
    """A result of a command. settings: all that made the result. parts: of the file's name.

    The metadata of the file are the command line and the settings. `in_name` makes the parts of settings. Commands call
    `check_out` before they open a model.
    """

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any], *parts: str) -> None:
        self.options, self.name = options, result_name(*parts)
        self.settings = {"command": command_line(options)} | settings

    def save(self, picture: Image) -> Path:
        """Save a picture and return its path."""
        return save_result(picture, self.options.out, self.name, self.settings)

    def finish(self, picture: Image, note: str = "") -> None:
        """Save a picture; print its path, a note, and the command that makes it again; show it."""
        saved = self.save(picture)
        self._announce(saved, note)
        if not self.options.no_window:
            show(picture, saved.name)

    def finish_animation(self, images: Iterable[Tensor], note: str = "") -> None:
        """Save batches of images, settings["frames"] of them, as an animation; print as `finish` does."""
        images = with_progress(images, self.settings["frames"], "animating")
        saved = save_animation(images, self.options.out, self.name, animation_format(self.options), self.settings)
        self._announce(saved, note)

    def _announce(self, saved: Path, note: str) -> None:
        print(f"{saved}{note}\nto reproduce: {self.settings['command']}")


def settings_of(options: argparse.Namespace, sampler: Sampler) -> dict[str, Any]:
    """Return the settings of everything that a sampler of the opened model draws."""
    assert sampler.cache is not None
    return {
        "model": options.model,
        "weights": sampler.cache.weights,
        "temperature": sampler.temperature,
        "iterations": sampler.iterations,
        "pixels": chosen_pixels(options),
    }


def check_out(options: argparse.Namespace) -> None:
    """Raise UserError if --out is the name of another kind of file than the result."""
    animated = getattr(options, "animate", None) is not None
    is_file_name(options.out, f".{animation_format(options)}" if animated else ".png")


def in_name(settings: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the parts of a file's name for some of the settings, such as "seed3"; none for USUAL and absent ones."""
    return [_part(key, settings[key]) for key in keys if key in settings and settings[key] != USUAL.get(key)]


def _part(key: str, value: Any) -> str:
    if key == "model":
        return name_of_file(value)
    if isinstance(value, bool):
        return key if value else ""
    text = str(value) if isinstance(value, str | int) else format_values(value, "-")
    return text if key == "pixels" else f"{key}{text}"
