"""A person at work: what they see is sampled, what they pick is on the disk at once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nvae.arguments import format_values, per_group
from nvae.checkpoint import plain_name
from nvae.errors import UserError
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.models.hierarchy import HierarchicalVAE
from nvae.signals import hangups
from nvae.tools.grids import Layout, as_text, grid, layout, near_square
from nvae.tools.picking.game import Picking, View
from nvae.tools.picking.selection import Cell, Selection, reserve, save_result


class PickingSession:
    """Draws what a picking shows, and keeps what is picked in a JSON file.

    model_path, temperature (one number or one per scale), iterations: of the samples. shown: how they are shown, and
    no cells. folder: where the JSON file and the result go. Raises UserError.
    """

    def __init__(
        self,
        model: HierarchicalVAE,
        model_path: str,
        temperature: list[float],
        iterations: int,
        picking: Picking,
        shown: Selection,
        folder: Path,
    ) -> None:
        self.model, self.picking, self.shown = model, picking, shown
        per_group(model, shown.scale_noise, "noise scale")  # refuse a wrong count before any work
        cache = StatisticsCache(model, model_path)
        self.sampler = Sampler(model, temperature, iterations, cache)
        self.cell = Cell(  # what all samples have in common
            model=as_text(model_path),
            weights=cache.weights,
            seed=picking.first_seed,
            temperature=temperature,
            iterations=iterations,
            statistics=None,
        )
        self.record = reserve(folder, f"cherry_{format_values(temperature, '-')}_{plain_name(model_path)}")
        self.kept = shown
        self.images: dict[int, Tensor] = {}

    def run(self, front_end: Callable[[list[str]], None]) -> bool:
        """Pick through a front end, which is told of statistics that did not settle.

        Returns whether it came to its end, or was interrupted.
        """
        try:
            with hangups(interrupt=True):
                statistics = self.sampler.statistics
                self.cell = self.cell.model_copy(update={"statistics": statistics and statistics.digest})
                front_end(self.sampler.warnings)
        except KeyboardInterrupt:
            return False
        except UserError as error:
            if self.picking.picks:
                raise UserError(f"{error} What you picked is in {self.record}, for --redo.") from error
            raise
        except OSError as error:
            if error.errno in (errno.EIO, errno.EPIPE):  # the terminal has gone
                return False
            raise
        finally:
            self.keep()
            if not self.picking.picks:
                self.record.unlink(missing_ok=True)
        return True

    def save(self) -> tuple[Path, list[str]] | None:
        """Draw the result; None where nothing was picked. Notices as in `save_result`; errors name the picks."""
        selection = self.selection()
        if not selection.cells:
            return None
        try:
            return save_result(selection, self.record, lambda path: self.model)
        except UserError as error:
            seeds = ", ".join(str(cell.seed) for cell in selection.cells)
            raise UserError(f"{error} You picked the seeds {seeds}.") from error

    def draw(self, view: View) -> tuple[Image.Image, Layout]:
        """The picture of a view, and where its cells are."""
        missing = [seed for seed in view.seeds if seed not in self.images]
        if missing:
            self.images = {seed: image for seed, image in self.images.items() if seed in self.picking.picks}
            missing = [seed for seed in view.seeds if seed not in self.images]
            found = self.sampler.sample(missing, self.shown.pixels, self.shown.scale_noise).cpu()
            self.images |= dict(zip(missing, found, strict=True))
        images = torch.stack([self.images[seed] for seed in view.seeds])
        shape = {"columns": near_square(len(images)), "captions": view.captions}
        return grid(images, marked=view.marked, **shape), layout(images.shape[-1], **shape)

    def keep(self) -> str:
        """Write down what is picked, if that has changed; returns what went wrong, if something did."""
        picked = self.selection()
        if picked == self.kept:
            return ""
        try:
            picked.save(self.record)
        except OSError as error:
            return f"the picks could not be saved ({error}); they are tried again with the next one."
        self.kept = picked
        return ""

    def selection(self) -> Selection:
        """What is picked so far."""
        cells = [self.cell.model_copy(update={"seed": seed}) for seed in self.picking.picks]
        return self.shown.model_copy(update={"cells": cells})
