"""A picking session: samples what the views show, and saves every change of the picks to disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nvae.checkpoint import name_of_file
from nvae.data.pictures.metadata import as_texts
from nvae.inference.arguments import format_values, per_group
from nvae.inference.sampling import Sampler
from nvae.system.errors import UserError
from nvae.system.files import WriteError
from nvae.system.signals import hangups
from nvae.tools.grids import Layout, grid, layout, result_name
from nvae.tools.picking.game import Picking, View
from nvae.tools.picking.selection import Pick, Selection, render, reserve, save_result


class PickingSession:
    """Draws the views of a game, and keeps its picks in a JSON file.

    sampler: of the samples, with a cache. model_path: its file. settings: how samples are shown, a selection without
    picks. out: the folder of the JSON file and the result, or the name of the .png file. Raises UserError.
    """

    def __init__(self, sampler: Sampler, model_path: str, picking: Picking, settings: Selection, out: Path) -> None:
        self.sampler, self.picking, self.settings = sampler, picking, settings
        per_group(sampler.model, settings.scale_noise, "scale of the noise")  # refuse a wrong count before the work
        assert sampler.cache is not None
        settings_of_picks = {  # everything but the seed is the same for all picks
            "model": as_texts({"model": model_path})["model"],
            "weights": sampler.cache.weights,
            "seed": picking.first_seed,
            "temperature": sampler.temperature,
            "iterations": sampler.iterations,
            "statistics": None,
        }
        self.pick = Pick.model_validate(settings_of_picks)
        name = result_name("cherry", name_of_file(model_path), f"temperature{format_values(sampler.temperature, '-')}")
        self.record = reserve(out, name)
        self.saved = settings
        self.images: dict[int, Tensor] = {}

    def run(self, front_end: Callable[[list[str]], None]) -> bool:
        """Play through a front end, which is given the warnings about the recalibration.

        Returns whether the game came to its end, and False if it was interrupted.
        """
        try:
            with hangups(interrupt=True):
                statistics = self.sampler.statistics
                self.pick = self.pick.model_copy(update={"statistics": statistics and statistics.digest})
                front_end(self.sampler.warnings)
        except KeyboardInterrupt:
            return False
        except UserError as error:
            if self.picking.picks:
                raise UserError(f"{error} The picks are in {self.record}.") from error
            raise
        except OSError as error:
            if error.errno in (errno.EIO, errno.EPIPE):  # the terminal has gone
                return False
            raise
        finally:
            self.save()
            if not self.picking.picks:
                self.record.unlink(missing_ok=True)
        return True

    def save_result(self, show_seeds: bool = False) -> tuple[Path, list[str]] | None:
        """Draw the picks; None if there are none. Warnings as in `render`; errors name the seeds."""
        selection = self.selection()
        if not selection.cells:
            return None
        try:
            images, drawn, warnings = render(selection, lambda path: self.sampler.model, self.sampler.progress)
            return save_result(images, drawn, self.record, show_seeds), warnings
        except UserError as error:
            seeds = ", ".join(str(pick.seed) for pick in selection.cells)
            raise UserError(f"{error} The picked seeds are {seeds}.") from error

    def draw(self, view: View) -> tuple[Image.Image, Layout]:
        """Return the picture of a view, and the places of its cells."""
        if missing := [seed for seed in view.seeds if seed not in self.images]:
            kept = {*self.picking.picks, *view.seeds}
            self.images = {seed: image for seed, image in self.images.items() if seed in kept}
            batch = self.sampler.sample(missing, self.settings.pixels, self.settings.scale_noise).cpu()
            self.images |= dict(zip(missing, batch, strict=True))
        images = torch.stack([self.images[seed] for seed in view.seeds])
        picture = grid(images, view.columns, captions=view.captions, marked=view.marked)
        return picture, layout(images.shape[-1], view.columns, captions=view.captions)

    def save(self) -> str:
        """Save the picks if they have changed; return a message if that failed, else ""."""
        selection = self.selection()
        if selection == self.saved:
            return ""
        try:
            selection.save(self.record)
        except WriteError as error:
            return f"{error} The picks are not saved yet; the next pick tries again."
        self.saved = selection
        return ""

    def selection(self) -> Selection:
        """Return the picks so far."""
        picks = [self.pick.model_copy(update={"seed": seed}) for seed in self.picking.picks]
        return self.settings.model_copy(update={"cells": picks})
