"""Draw the way from one image to another, mixtures of the two, or an animated walk between samples.

A and B are two pictures of your own, or two samples: seed:N, or FILE:N for pick N of a cherry.py result.
The way leads through the noise of each latent group: along an arc, on which the noise keeps its length and every
image is as typical as a sample, or with --linear along a straight line. Halfway between two samples, the noise on the
straight line is shorter by 1/sqrt(2), and the image is as at a lower temperature: 0.5 instead of 0.7 (in the families
ladder and dvp, half the temperature). With --linear, z of the first group is linear too, if its prior has no flow and
no diffusion. z of the other groups is not linear, because their priors depend on the groups above.
For a model with a context, the image that the context stands for is drawn below each image.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nvae.cli.arguments import (
    ITERATIONS,
    MAX_SECONDS,
    Parser,
    add_animation,
    add_context_temperature,
    add_model,
    add_result,
    chosen_pixels,
    chosen_seed,
    factors,
    first_given,
    integer,
    iterations,
    print_warnings,
)
from nvae.cli.models import make_sampler, open_model, with_context_temperature
from nvae.system.errors import InvalidValueError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nvae.inference.sampling import Sampler
    from nvae.models.distributions import Noise
    from nvae.models.hierarchy import HierarchicalVAE

    # Their sampler, their noise, (1, L, H, W) per latent group each, the pictures (2, C, H, W) in [0, 1], their names.
    Ends = tuple[Sampler, tuple[Noise, Noise], Tensor | None, list[str]]

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
    parser.option("--steps N", integer(2, 100), "images from A to B", STEPS)
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
    parser.switch(
        "--linear",
        "go along a straight line in the noise, which is shorter in the middle, as at a lower temperature",
        "along an arc, on which the noise keeps its length",
    )
    parser.option("--walk N", integer(2, 1000), "animate a round trip of N samples", "go from A to B")
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
    if options.linear and mixing:
        raise UserError("--linear goes from A to B: leave out --coarse-from and --fine-from.")
    if options.walk:
        if options.ends or mixing:
            raise UserError("--walk goes from sample to sample: leave out A, B and mixing.")
        _walk(options)
        return
    if len(options.ends) != 2:
        raise InvalidValueError("the images", len(options.ends), "two, A and B, or --walk N")
    if options.seed is not None:
        raise UserError("--seed needs --walk: give samples as seed:N.")
    if options.animate is not None and mixing:
        raise UserError("--animate goes from A to B: leave out --coarse-from and --fine-from.")
    _between(options, mixing)


def _mixing(options: argparse.Namespace) -> str | None:
    """Return "AB" for coarse from A and fine from B, "BA" for the opposite, None for no mixing."""
    other = {None: None, "A": "B", "B": "A"}
    coarse = options.coarse_from or other[options.fine_from]
    if coarse is not None and coarse == options.fine_from:
        raise InvalidValueError("--coarse-from and --fine-from", f"{coarse} twice", "A and B")
    return coarse and f"{coarse}{other[coarse]}"


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
    return make_sampler(options, model, [1.0], 0), (a, b), images, [path.stem for path in paths]


def _sample_ends(options: argparse.Namespace, model: HierarchicalVAE) -> Ends:
    from nvae.inference.arguments import per_group
    from nvae.inference.sampling import seed_noise
    from nvae.tools.picking.selection import load_pick

    noise, picks, names = [], [], []
    for end in options.ends:
        kind, seed, scale_noise = "seed", end.removeprefix("seed:"), [1.0]
        if seed == end:
            selection, pick = load_pick(end)
            kind, seed, scale_noise = "pick", pick.seed, selection.scale_noise
            options.pixels = options.pixels or selection.pixels
            picks.append(pick)
        names.append(f"{kind}{seed}")
        noise.append(seed_noise(model, [int(seed)], scale_noise))
    of_picks = [pick.temperature for pick in picks] or [[TEMPERATURE]]
    given = [options.temperature] if options.temperature else of_picks
    temperatures = [with_context_temperature(options, model, temperature) for temperature in given]
    if len({tuple(per_group(model, temperature, "temperature")) for temperature in temperatures}) > 1:
        raise UserError("the picks have different temperatures: give one with --temperature.")
    iterations = first_given(options.iterations, picks[0].iterations if picks else ITERATIONS)
    return make_sampler(options, model, temperatures[0], iterations), (noise[0], noise[1]), None, names


def _between(options: argparse.Namespace, mixing: str | None) -> None:
    import torch

    from nvae.cli.result import Result, check_out, in_name, settings_of
    from nvae.inference.interpolation import interpolate, lerp, mix, slerp
    from nvae.tools.animation import FRAMES_PER_SECOND
    from nvae.tools.grids import grid, near_square, with_rows_below

    check_out(options)
    if all(end.isdecimal() and not Path(end).exists() for end in options.ends):
        a, b = options.ends
        raise InvalidValueError("A and B", f"{a} and {b}", "pictures or samples", f"Did you mean seed:{a} seed:{b}?")
    model = open_model(options)
    samples = [re.fullmatch(r"seed:\d{1,18}|.*\.(json|png):\d+", end) is not None for end in options.ends]
    if samples[0] != samples[1]:
        raise InvalidValueError("A and B", " and ".join(options.ends), "two pictures or two samples")
    find_ends = _sample_ends if samples[0] else _picture_ends
    sampler, noise, originals, names = find_ends(options, model)
    pixels = chosen_pixels(options)
    settings = settings_of(options, sampler) | {
        "from": options.ends[0],
        "to": options.ends[1],
        "linear": options.linear,
    }
    if originals is not None:
        del settings["temperature"], settings["iterations"]
    parts = [*in_name(settings, "model"), *names, *in_name(settings, "temperature", "pixels", "linear")]
    if options.animate is not None:
        frames = max(2, round((options.seconds or ANIMATION_SECONDS) * FRAMES_PER_SECOND))
        there = interpolate(sampler, *noise, frames // 2 + 1, pixels, linear=options.linear)
        back = there.flip(0)[1:-1]
        settings["frames"] = len(there) + len(back)
        batches = [there, back] if len(back) else [there]
        Result(options, settings, "interpolation", *parts).finish_animation(batches)
        return
    if mixing:
        coarse, fine = noise if mixing == "AB" else noise[::-1]
        counts = range(len(model.groups), -1, -1)
        images = mix(sampler, coarse, fine, pixels).flip(0)
        contexts = sampler.pseudo_inputs(torch.cat([coarse[0] if count else fine[0] for count in counts]))
        captions = [mixture_name(mixing, count, len(model.groups) - count) for count in counts]
        settings |= {"coarse": mixing[0], "fine": mixing[1]}
        result = Result(options, settings, "mixture", *parts, mixing)
    else:
        times = torch.linspace(0, 1, options.steps or STEPS)
        images = interpolate(sampler, *noise, times, pixels, linear=options.linear)
        captions = [f"{t:.2f}" for t in times.tolist()]
        contexts = sampler.pseudo_inputs((lerp if options.linear else slerp)(noise[0][0], noise[1][0], times))
        settings["steps"] = len(times)
        result = Result(options, settings, "interpolation", *parts, *in_name(settings, "steps"))
    below = ["context"] * len(images)
    if originals is not None:  # pictures are drawn beside their reconstructions
        first, last = tuple(mixing or "AB")
        ends = dict(zip("AB", originals[:, None], strict=True))
        images, captions = torch.cat([ends[first], images, ends[last]]), [first, *captions, last]
        if contexts is not None:
            white = torch.ones_like(contexts[:1])
            contexts, below = torch.cat([white, contexts, white]), ["", *below, ""]
    columns = len(images) if len(images) <= MAX_COLUMNS else near_square(len(images))
    if contexts is not None:
        images, captions = with_rows_below(columns, (images, captions), (contexts, below))
    result.finish(grid(images, columns, cell=CELL, captions=captions))


def mixture_name(mixing: str, *counts: int) -> str:
    """Return how many latent groups each end gives, the coarse one first, such as "1 A + 3 B" or "4 A"."""
    return " + ".join(f"{count} {end}" for count, end in zip(counts, mixing, strict=True) if count)


def _walk(options: argparse.Namespace) -> None:
    from nvae.cli.result import Result, check_out, in_name, settings_of
    from nvae.inference.interpolation import walk
    from nvae.tools.animation import FRAMES_PER_SECOND

    options.animate = options.animate or "auto"
    check_out(options)
    model = open_model(options)
    seed = chosen_seed(options)
    temperature = with_context_temperature(options, model, options.temperature or [TEMPERATURE])
    sampler = make_sampler(options, model, temperature, first_given(options.iterations, ITERATIONS))
    seeds = range(seed, seed + options.walk)
    duration = options.seconds or min(2 * options.walk, MAX_SECONDS)
    frames = max(options.walk, round(duration * FRAMES_PER_SECOND))
    settings = settings_of(options, sampler) | {"seeds": list(seeds), "frames": frames, "linear": options.linear}
    parts = [
        *in_name(settings, "model", "temperature"),
        f"samples{options.walk}",
        *in_name(settings, "pixels", "linear"),
    ]
    result = Result(options, settings, "walk", *parts, f"seed{seed}")
    note = f": seeds {seed} to {seeds[-1]} and back, {frames / FRAMES_PER_SECOND:g} seconds"
    result.finish_animation(walk(sampler, seeds, frames, chosen_pixels(options), seed, options.linear), note)
