"""python3 -m nvae interpolate: ways between images, and mixtures of two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from nvae.arguments import format_values
from nvae.checkpoint import load_model, plain_name, weights_digest
from nvae.cli.command_line import (
    ITERATIONS,
    LONGEST_ANIMATION,
    add_seed_device_out,
    chosen_seed,
    natural,
    numbers,
    progress_bar,
    same_again,
    say,
    seconds,
    up_to,
)
from nvae.data.image_files import read_image_files
from nvae.devices import choose_device
from nvae.errors import UserError
from nvae.inference.interpolation import interpolate, mix, walk
from nvae.inference.reconstruction import encode
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.tools.animation import FRAMES_PER_SECOND, Format, save_animation
from nvae.tools.display import show
from nvae.tools.grids import grid, near_square, save_result

CELL = 128  # pixels of an image in a picture
MOST_COLUMNS = 12


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "interpolate", help="the way from one picture to another, mixtures of the two, or a walk between samples"
    )
    command.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file")
    command.add_argument("pictures", type=Path, nargs="*", metavar="A.png B.png", help="two pictures, unless --walk")
    command.add_argument("--steps", type=up_to(100), metavar="N", help="images from A to B (8)")
    command.add_argument("--coarse-from", metavar="A|B", help="mix: whose the first 0, 1, 2... latent groups are,")
    command.add_argument("--fine-from", metavar="A|B", help="and whose the others are")
    command.add_argument("--walk", type=up_to(1000), metavar="N", help="a round trip of N samples, as an animation")
    command.add_argument("--seconds", type=seconds, metavar="S", help="of the animation (2 per sample, or 4)")
    command.add_argument(
        "--animate",
        choices=get_args(Format),
        nargs="?",
        const="gif",
        help="there and back; of a walk: which",
    )
    command.add_argument("--temperature", type=numbers, metavar="T[,T...]", help="of a walk (0.7)")
    command.add_argument("--iterations", type=natural, metavar="N", help=f"of a walk: recalibration ({ITERATIONS})")
    add_seed_device_out(command, "the first sample of a walk; the others have the next ones")
    command.set_defaults(run=interpolate_images)


def interpolate_images(options: argparse.Namespace) -> None:
    pictures, mixing = options.pictures, _mixing(options)
    if options.seconds is not None and not (options.walk or options.animate):
        raise UserError("--seconds is the length of an animation: say --animate or --walk with it.")
    if options.steps is not None and (options.walk or options.animate or mixing):
        raise UserError(
            "--steps is of the way from A to B in one picture: leave it out, or --walk, --animate and mixing."
        )
    if options.walk:
        if pictures or mixing:
            raise UserError("--walk leads from sample to sample: leave out the pictures and what belongs to them.")
        if options.walk < 2:
            raise UserError("--walk 1 leads nowhere; give 2 samples or more.")
        return _walk(options)
    if len(pictures) != 2:
        raise UserError(f"{len(pictures)} pictures are given; give two, A and B, or --walk N to go between samples.")
    if options.temperature or options.iterations is not None or options.seed is not None:
        raise UserError("--temperature, --iterations and --seed belong to --walk: pictures have their own latents.")
    if options.steps == 1:
        raise UserError("--steps 1 leads nowhere; give 2 or more.")
    if options.animate and mixing:
        raise UserError("--animate is of the way from A to B: leave out --coarse-from and --fine-from.")
    model = load_model(options.model, choose_device(options.device))
    images, notices = read_image_files(pictures, model.config, model.device)
    for notice in notices:
        print(notice)
    sampler = Sampler(model, iterations=0)
    a, b = (encode(model, image[None]) for image in images)
    about = {"model": options.model, "weights": weights_digest(model), "pictures": [str(path) for path in pictures]}
    name = f"{plain_name(options.model)}_{pictures[0].stem}_{pictures[1].stem}"
    if options.animate:
        frames = max(2, round((options.seconds or 4) * FRAMES_PER_SECOND))
        there = interpolate(sampler, a, b, torch.linspace(0, 1, frames // 2 + 1))
        back = there.flip(0)[1:-1]
        both = [there, back] if len(back) else [there]
        folder, kind = options.out, options.animate
        count = len(there) + len(back)
        print(save_animation(both, count, folder, f"interpolation_{name}", kind, about | {"frames": count}))
        return None
    if mixing:
        coarse, fine = (images, (a, b)) if mixing == "AB" else (images.flip(0), (b, a))
        found, groups = mix(sampler, *fine), len(model.groups)
        captions = [mixing[0], *(f"{k} of {groups}" for k in range(groups, -1, -1)), mixing[1]]
        cells = torch.cat([coarse[:1], found.flip(0), coarse[1:]])
        name, about = f"mixture_{name}_{mixing}", about | {"coarse": mixing[0], "fine": mixing[1]}
    else:
        times = torch.linspace(0, 1, options.steps or 8)
        captions = ["A", *(f"{t:.2f}" for t in times.tolist()), "B"]
        cells = torch.cat([images[:1], interpolate(sampler, a, b, times), images[1:]])
        name, about = f"interpolation_{name}", about | {"steps": len(times)}
    columns = len(cells) if len(cells) <= MOST_COLUMNS else near_square(len(cells))
    picture = grid(cells, columns, cell=CELL, captions=captions)
    saved = save_result(picture, options.out, name, about)
    print(saved)
    show(picture, saved.name)
    return None


def _mixing(options: argparse.Namespace) -> str | None:
    """ "AB" for coarse from A and fine from B, "BA" for the opposite, None for no mixing."""
    if options.coarse_from is None and options.fine_from is None:
        return None
    paths = [str(path) for path in options.pictures]
    chosen = []
    for option, value in (("--coarse-from", options.coarse_from), ("--fine-from", options.fine_from)):
        if value is not None and value.upper() not in ("A", "B") and value not in paths:
            raise UserError(f"{option} is '{value}'; it can be A, the first picture, or B, the second.")
        chosen.append(value and (value.upper() if value.upper() in ("A", "B") else "AB"[paths.index(value)]))
    coarse, fine = chosen
    coarse, fine = coarse or ("A" if fine == "B" else "B"), fine or ("A" if coarse == "B" else "B")
    if coarse == fine:
        raise UserError(f"--coarse-from and --fine-from are both {coarse}: that is no mixture; give A and B.")
    return coarse + fine


def _walk(options: argparse.Namespace) -> None:
    model = load_model(options.model, choose_device(options.device))
    cache, seed = StatisticsCache(model, options.model), chosen_seed(options)
    temperature = options.temperature or [0.7]
    iterations = ITERATIONS if options.iterations is None else options.iterations
    sampler = Sampler(model, temperature, iterations, cache, progress=progress_bar)
    seeds = range(seed, seed + options.walk)
    frames = max(options.walk, round((options.seconds or min(2 * options.walk, LONGEST_ANIMATION)) * FRAMES_PER_SECOND))
    about = {"model": options.model, "weights": cache.weights, "temperature": temperature, "iterations": iterations}
    about |= {"seeds": list(seeds), "frames": frames}
    name = f"walk_{plain_name(options.model)}_temperature{format_values(temperature, '-')}_seed{seed}"
    say(sampler.warnings)
    saved = save_animation(walk(sampler, seeds, frames), frames, options.out, name, options.animate or "gif", about)
    print(f"{saved}: seeds {seed} to {seeds[-1]} and back, {frames / FRAMES_PER_SECOND:g} seconds")
    print(same_again(seed))
