"""Show what each latent group does: replace the noise of one group at a time, keep all other noise.

A jam is one such draw of new noise for a group: where the image changes is what the group is responsible for.
The start is a sample (TEMPERATURE, --seed), a cherry-picked sample (--from), or a picture of your own (--image).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae.cli.arguments import (
    ITERATIONS,
    add_animation,
    add_context_temperature,
    add_device,
    add_model,
    add_no_window,
    add_out,
    add_pixels,
    add_sampling,
    add_seed,
    animation_format,
    chosen_seed,
    number,
    positive,
    print_warnings,
    reproduce_with_seed,
    up_to,
)
from nvae.cli.models import open_model_and_metadata, open_sampler, with_context_temperature
from nvae.cli.progress import with_progress
from nvae.system.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from nvae.inference.exploration import BasePoint
    from nvae.inference.sampling import Sampler

ANIMATION_SECONDS = 4
POSITION_JAMS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    add_sampling(parser)
    add_context_temperature(parser)
    parser.add_argument(
        "--from",
        dest="pick",
        metavar="FILE:N",
        help="start from pick N of a cherry.py result, such as images/cherry.json:3, with its model, temperature and "
        "iterations unless given (default: a sample of --seed)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="start from this picture (default: a sample)")
    parser.add_argument(
        "--jams",
        type=up_to(100),
        metavar="K",
        help=f"draws of new noise per group, one row per group (default: 1; with --group {POSITION_JAMS})",
    )
    parser.add_argument(
        "--group",
        type=positive,
        metavar="G",
        help="explore each position of this group alone; 1 is the top group, or the context, whose positions may be "
        "coefficients (default: all groups as wholes)",
    )
    parser.add_argument(
        "--difference",
        action="store_true",
        help="right of each image, draw a heat map of where it changed (default: images only)",
    )
    parser.add_argument(
        "--strength", type=number, default=1.0, metavar="S", help="factor on the new noise (default: 1)"
    )
    add_animation(
        parser,
        "animate one group: its noise goes around a circle and returns; the group of --group, or else the one that "
        "changes the image most",
        f"{ANIMATION_SECONDS}",
    )
    add_pixels(parser)
    add_seed(parser, "the sample and of the jams")
    add_device(parser)
    add_out(parser)
    add_no_window(parser)


def run(options: argparse.Namespace) -> None:
    _check(options)
    from nvae.checkpoint import plain_name
    from nvae.data.pictures.image_files import read_image_files
    from nvae.inference.arguments import format_values
    from nvae.inference.exploration import base_point, strength_of
    from nvae.inference.reconstruction import encode
    from nvae.inference.sampling import seed_noise
    from nvae.tools.display import show
    from nvae.tools.grids import is_file_name, result_name
    from nvae.tools.picking.selection import load_pick

    is_file_name(options.out, f".{animation_format(options)}" if options.animate is not None else ".png")
    scale_noise = [1.0]
    if options.pick:
        selection, pick = load_pick(options.pick)
        scale_noise = selection.scale_noise
        options.pixels = options.pixels or selection.pixels
        for name in ("model", "temperature", "iterations"):
            if getattr(options, name) is None:
                setattr(options, name, getattr(pick, name))
    model, file_metadata = open_model_and_metadata(options)
    if options.group is not None and options.group > len(model.groups):
        raise UserError(f"--group is {options.group}, expected 1 to {len(model.groups)}: 1 is the top group.")
    seed, pixels, strength, original = chosen_seed(options), options.pixels or "mean", [options.strength], None
    options.temperature = temperature = with_context_temperature(options, model, options.temperature)
    iterations = ITERATIONS if options.iterations is None else options.iterations
    if options.image:  # the latents of pictures have the statistics of training, and their noise is of temperature 1
        images, warnings = read_image_files([options.image], model.config, model.device)
        print_warnings(warnings)
        noise, iterations, original = encode(model, images), 0, images[0]
        temperature, start = [1.0], options.image.stem
    else:
        sample_seed = pick.seed if options.pick else seed
        noise = seed_noise(model, [sample_seed], scale_noise)
        start = f"pick{sample_seed}" if options.pick else ""
    sampler, weights = open_sampler(model, options.model, temperature, iterations)
    metadata = {"model": options.model, "weights": weights, "temperature": options.temperature, "seed": seed}
    metadata |= {"strength": options.strength, "image": str(options.image or ""), "from": options.pick or ""}
    metadata |= {"iterations": iterations, "pixels": pixels}
    parts = [plain_name(options.model), f"temperature{format_values(options.temperature, '-')}", start, f"seed{seed}"]
    parts += [f"strength{options.strength:g}" if options.strength != 1 else "", pixels if pixels != "mean" else ""]
    view = base_point(sampler, noise, pixels, seed)
    if options.image:
        strength = strength_of(model, view, options.temperature, options.strength)
    name, kl_per_group = result_name("exploration", *parts), file_metadata.get("kl_per_group")
    saved, picture = _draw(options, sampler, view, original, strength, seed, name, metadata, kl_per_group)
    print(saved)
    print(reproduce_with_seed(seed))
    if picture is not None and not options.no_window:
        show(picture, saved.name)


def _check(options: argparse.Namespace) -> None:
    if options.pick and options.image:
        raise UserError("--from and --image exclude each other: give one of them.")
    if not options.pick and (options.model is None or options.temperature is None):
        raise UserError("give MODEL and TEMPERATURE, such as quickstart 0.7, or --from FILE:N.")
    if options.difference and (options.group or options.animate is not None):
        raise UserError("--difference draws all groups: leave out --group and --animate.")
    if options.animate is not None and options.jams:
        raise UserError("--animate moves the noise of one group: leave out --jams.")
    if options.seconds is not None and options.animate is None:
        raise UserError("--seconds needs --animate.")


def _draw(
    options: argparse.Namespace,
    sampler: Sampler,
    view: BasePoint,
    original: Tensor | None,
    strength: list[float],
    seed: int,
    name: str,
    metadata: dict[str, Any],
    kl_per_group: list[float] | None,
) -> tuple[Path, Image | None]:
    """Make and save what was asked for; return its path, and the picture unless it is an animation."""
    from nvae.inference.exploration import explore, explore_context, explore_positions, mean_change, sweep
    from nvae.models.group_names import group_name
    from nvae.tools.animation import FRAMES_PER_SECOND, save_animation
    from nvae.tools.exploration_pictures import (
        change_table,
        overview,
        positions_columns,
        positions_picture,
        shown_positions,
    )
    from nvae.tools.grids import result_name, save_result

    model = sampler.model
    group = options.group and options.group - 1
    jams = options.jams or 1
    if group is None:
        images = explore(sampler, view, jams, strength, seed)
        print(change_table(model, view, images, kl_per_group))
    if options.animate is not None:
        if group is None:
            group = max(range(len(images)), key=lambda index: mean_change(images[index], view.image))
        frames = max(2, round((options.seconds or ANIMATION_SECONDS) * FRAMES_PER_SECOND))
        metadata |= {"group": group + 1, "frames": frames}
        batches = with_progress(sweep(sampler, view, group, frames, strength, seed), frames, "animating")
        name = result_name(name, f"group{group + 1}")
        return save_animation(batches, options.out, name, animation_format(options), metadata), None
    if group is None:
        new_contexts = explore_context(sampler, jams, strength, seed)
        picture = overview(model, view, images, options.difference, original, new_contexts)
        name = result_name(name, f"jams{jams}" if jams > 1 else "", "difference" if options.difference else "")
    else:
        jams = options.jams or POSITION_JAMS
        *_, height, width = model.noise_shapes[group]
        columns = positions_columns(original is not None, model.groups[group].is_context)
        shown = shown_positions(height * width, columns)
        positions = explore_positions(sampler, view, group, jams, strength, seed, shown)
        position = "coefficient" if model.groups[group].has_coefficients else "position"
        print(f"group {group_name(model, group)}: the mean change of a {position} is {positions.influence.mean():.4f}")
        picture = positions_picture(model, view, group, positions, original)
        name = result_name(name, f"group{group + 1}", f"jams{jams}")
    metadata |= {"jams": jams, "group": options.group or 0, "difference": options.difference}
    return save_result(picture, options.out, name, metadata), picture
