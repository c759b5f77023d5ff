"""Draw the way from one image to another, mixtures of the two, or an animated walk between samples.

A and B are two pictures of your own, or two samples: seed:N, or FILE:N for pick N of a cherry.py result.
For a model with a context, the image that the context stands for is drawn below each image.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nvae.cli.arguments import (
    ITERATIONS,
    MAX_SECONDS,
    Parser,
    add_animation,
    add_context_temperature,
    add_model,
    add_result,
    chosen_seed,
    factors,
    first_given,
    iterations,
    print_warnings,
    up_to,
)
from nvae.cli.models import make_sampler, open_model, with_context_temperature
from nvae.system.errors import InvalidValueError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nvae.models.distributions import Noise
    from nvae.models.hierarchy import HierarchicalVAE

CELL = 128  # pixels of an image in the result
MAX_COLUMNS = 12
STEPS = 8
ANIMATION_SECONDS = 4
TEMPERATURE = 0.7


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument(
        "ends",
        nargs="*",
        metavar="A B",
        help="two picture files, or two samples: seed:N, or FILE:N for pick N of a cherry.py result; none with --walk",
    )
    parser.option("--steps N", up_to(100, 2), "images from A to B", STEPS)
    parser.option(
        "--coarse-from",
        str.upper,
        "mix A and B: which one gives the first 0, 1, 2... latent groups",
        "no mixing, or the other one of --fine-from",
        choices=("A", "B"),
    )
    parser.option(
        "--fine-from",
        str.upper,
        "mix A and B: which one gives the other latent groups",
        "no mixing, or the other one of --coarse-from",
        choices=("A", "B"),
    )
    parser.option("--walk N", up_to(1000, 2), "animate a round trip of N samples", "go from A to B")
    add_animation(parser, "animate the way from A to B and back", f"{ANIMATION_SECONDS}; with --walk 2 per sample")
    parser.option(
        "--temperature T[,T...]",
        factors,
        "temperature of samples, or one per scale or latent group",
        f"that of the picks, else {TEMPERATURE}",
    )
    add_context_temperature(parser)
    parser.option(
        "--iterations N", iterations, "passes that recalibrate the batch-norm statistics for samples", ITERATIONS
    )
    add_result(parser, "the first sample of --walk; the others have the following seeds")


def run(options: argparse.Namespace) -> None:
    mixing = _mixing(options)
    if options.seconds is not None and not options.walk and options.animate is None:
        raise UserError("--seconds needs --animate or --walk.")
    if options.steps is not None and (options.walk or options.animate is not None or mixing):
        raise UserError("--steps draws the way from A to B: leave out --walk, --animate and mixing.")
    if options.walk:
        if options.ends or mixing:
            raise UserError("--walk goes from sample to sample: leave out A, B and mixing.")
        _walk(options)
        return
    if len(options.ends) != 2:
        raise InvalidValueError("A and B", f"{len(options.ends)} images", "two, or --walk N")
    if options.seed is not None:
        raise UserError("--seed needs --walk: give samples as seed:N.")
    if options.animate is not None and mixing:
        raise UserError("--animate goes from A to B: leave out --coarse-from and --fine-from.")
    _between(options, mixing)


def _mixing(options: argparse.Namespace) -> str | None:
    """Return "AB" for coarse from A and fine from B, "BA" for the opposite, None for no mixing."""
    if options.coarse_from is None and options.fine_from is None:
        return None
    other = {"A": "B", "B": "A"}
    coarse = options.coarse_from or other[options.fine_from]
    if coarse == options.fine_from:
        raise InvalidValueError("--coarse-from and --fine-from", f"{coarse} twice", "A and B")
    return coarse + other[coarse]


class Ends(NamedTuple):
    """What a way between two images needs."""

    noise: tuple[Noise, Noise]  # (1, L, H, W) per latent group, each
    originals: Tensor | None  # (2, C, H, W) in [0, 1], of pictures
    temperature: list[float]
    iterations: int
    names: tuple[str, str]


def _ends(options: argparse.Namespace, model: HierarchicalVAE) -> Ends:
    samples = [re.fullmatch(r"seed:\d{1,18}|.*\.(json|png):\d+", end) is not None for end in options.ends]
    if samples[0] != samples[1]:
        raise InvalidValueError("A and B", " and ".join(options.ends), "two pictures or two samples")
    return _sample_ends(options, model) if samples[0] else _picture_ends(options, model)


def _picture_ends(options: argparse.Namespace, model: HierarchicalVAE) -> Ends:
    from nvae.data.pictures.image_files import read_image_files
    from nvae.inference.reconstruction import encode

    if options.temperature or options.context_temperature is not None or options.iterations is not None:
        raise UserError(
            "--temperature, --context-temperature and --iterations need samples: pictures have latents of their own."
        )
    paths = [Path(end) for end in options.ends]
    images, warnings = read_image_files(paths, model.config, model.device)
    print_warnings(warnings)
    a, b = (encode(model, image[None]) for image in images)
    return Ends((a, b), images, [1.0], 0, (paths[0].stem, paths[1].stem))


def _sample_ends(options: argparse.Namespace, model: HierarchicalVAE) -> Ends:
    from nvae.inference.arguments import per_group
    from nvae.inference.sampling import seed_noise
    from nvae.tools.picking.selection import load_pick

    noise, picks, names = [], [], []
    for end in options.ends:
        seed, scale_noise = end.removeprefix("seed:"), [1.0]
        if end.startswith("seed:"):
            names.append(f"seed{seed}")
        else:
            selection, pick = load_pick(end)
            seed, scale_noise = pick.seed, selection.scale_noise
            options.pixels = options.pixels or selection.pixels
            picks.append(pick)
            names.append(f"pick{seed}")
        noise.append(seed_noise(model, [int(seed)], scale_noise))
    temperatures = [with_context_temperature(options, model, pick.temperature) for pick in picks]
    if len({tuple(per_group(model, temperature, "temperature")) for temperature in temperatures}) > 1 and not (
        options.temperature
    ):
        raise UserError("the picks have different temperatures: give one with --temperature.")
    temperature = options.temperature or (picks[0].temperature if picks else [TEMPERATURE])
    temperature = with_context_temperature(options, model, temperature)
    iterations = first_given(options.iterations, picks[0].iterations if picks else ITERATIONS)
    return Ends((noise[0], noise[1]), None, temperature, iterations, (names[0], names[1]))


def _between(options: argparse.Namespace, mixing: str | None) -> None:
    import torch

    from nvae.cli.result import Result, check_out, in_name
    from nvae.inference.interpolation import interpolate, mix, slerp
    from nvae.models.group_names import first_groups_name
    from nvae.tools.animation import FRAMES_PER_SECOND
    from nvae.tools.grids import grid, near_square, with_rows_below

    check_out(options)
    model = open_model(options)
    ends = _ends(options, model)
    sampler = make_sampler(options, model, ends.temperature, ends.iterations)
    pixels = options.pixels or "mean"
    of_samples = {} if ends.originals is not None else {"temperature": ends.temperature, "iterations": ends.iterations}
    settings: dict[str, Any] = {
        "model": options.model,
        "weights": sampler.cache.weights,
        "from": options.ends[0],
        "to": options.ends[1],
        "pixels": pixels,
        **of_samples,
    }
    parts = [*in_name(settings, "model"), *ends.names, *in_name(settings, "temperature", "pixels")]
    if options.animate is not None:
        frames = max(2, round((options.seconds or ANIMATION_SECONDS) * FRAMES_PER_SECOND))
        there = interpolate(sampler, *ends.noise, frames // 2 + 1, pixels)
        back = there.flip(0)[1:-1]
        settings["frames"] = len(there) + len(back)
        batches = [there, back] if len(back) else [there]
        Result(options, settings, "interpolation", *parts).finish_animation(batches)
        return
    before, after = [], []  # pictures are drawn beside their reconstructions
    if ends.originals is not None:
        before, after = [ends.originals[:1]], [ends.originals[1:]]
    if mixing:
        coarse, fine = ends.noise if mixing == "AB" else ends.noise[::-1]
        if mixing == "BA":
            before, after = after, before
        counts = range(len(model.groups), -1, -1)
        images = mix(sampler, coarse, fine, pixels).flip(0)
        contexts = sampler.pseudo_inputs(torch.cat([coarse[0] if count else fine[0] for count in counts]))
        captions = [first_groups_name(model, count) for count in counts]
        settings |= {"coarse": mixing[0], "fine": mixing[1]}
        result = Result(options, settings, "mixture", *parts, mixing)
    else:
        times = torch.linspace(0, 1, options.steps or STEPS)
        images, captions = interpolate(sampler, *ends.noise, times, pixels), [f"{t:.2f}" for t in times.tolist()]
        contexts = sampler.pseudo_inputs(slerp(ends.noise[0][0], ends.noise[1][0], times))
        settings["steps"] = len(times)
        result = Result(options, settings, "interpolation", *parts, *in_name(settings, "steps"))
    cells = torch.cat([*before, images, *after])
    if before:
        captions = [(mixing or "AB")[0], *captions, (mixing or "AB")[1]]
    columns = len(cells) if len(cells) <= MAX_COLUMNS else near_square(len(cells))
    if contexts is not None:
        white = [torch.ones_like(end) for end in before]
        below = ["", *["context"] * len(contexts), ""] if before else ["context"] * len(contexts)
        cells, captions = with_rows_below(cells, captions, torch.cat([*white, contexts, *white]), below, columns)
    result.finish(grid(cells, columns, cell=CELL, captions=captions))


def _walk(options: argparse.Namespace) -> None:
    from nvae.cli.result import Result, check_out, in_name
    from nvae.inference.interpolation import walk
    from nvae.tools.animation import FRAMES_PER_SECOND

    options.animate = options.animate or "auto"
    check_out(options)
    model = open_model(options)
    seed = chosen_seed(options)
    temperature = with_context_temperature(options, model, options.temperature or [TEMPERATURE])
    iterations, pixels = first_given(options.iterations, ITERATIONS), options.pixels or "mean"
    sampler = make_sampler(options, model, temperature, iterations)
    seeds = range(seed, seed + options.walk)
    duration = options.seconds or min(2 * options.walk, MAX_SECONDS)
    frames = max(options.walk, round(duration * FRAMES_PER_SECOND))
    settings = {
        "model": options.model,
        "weights": sampler.cache.weights,
        "temperature": temperature,
        "iterations": iterations,
        "seeds": list(seeds),
        "frames": frames,
        "pixels": pixels,
    }
    parts = [*in_name(settings, "model", "temperature"), f"samples{options.walk}", *in_name(settings, "pixels")]
    result = Result(options, settings, "walk", *parts, f"seed{seed}")
    note = f": seeds {seed} to {seeds[-1]} and back, {frames / FRAMES_PER_SECOND:g} seconds"
    result.finish_animation(walk(sampler, seeds, frames, pixels, seed), note, seed)
