"""Show what each latent group does: replace the noise of one group at a time, keep all other noise.

A jam is one such draw of new noise for a group: where the image changes is what the group is responsible for.
The start is a sample (TEMPERATURE, --seed), a cherry-picked sample (--from), or a picture of your own (--image).
With several of them (--bases, or --from or --image several times), every start has columns of its own, and the same new
noise: what a group does to all of them is its part of the image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.cli.arguments import (
    ITERATIONS,
    Parser,
    add_animation,
    add_model,
    add_result,
    add_sampling,
    chosen_pixels,
    chosen_seed,
    first_given,
    integer,
    number,
    positive,
    print_warnings,
)
from nvae.cli.models import make_sampler, open_model_and_metadata, with_context_temperature
from nvae.system.errors import InvalidValueError, UserError

ANIMATION_SECONDS = 4
POSITION_JAMS = 4


def add_arguments(parser: Parser) -> None:
    add_model(parser, optional=True)
    add_sampling(parser)
    parser.option(
        "--from FILE:N",
        str,
        "start from pick N of a cherry.py result, such as images/cherry.json:3, with its model, temperature and "
        "iterations unless given; may be given several times",
        "a sample of --seed",
        dest="picks",
        action="append",
    )
    parser.option(
        "--image FILE", Path, "start from this picture; may be given several times", "a sample", action="append"
    )
    parser.option("--bases N", integer(1, 100), "start from N samples, of --seed and the following seeds", 1)
    parser.option(
        "--jams K",
        integer(1, 100),
        "draws of new noise per group, one row per group",
        f"1; with --group {POSITION_JAMS}",
    )
    parser.option(
        "--group G",
        positive,
        "explore each position of this group alone; 1 is the top group, or the context, whose positions may be "
        "coefficients",
        "all groups as wholes",
    )
    parser.switch("--difference", "right of each image, draw a heat map of where it changed", "images only")
    parser.option("--strength S", number, "factor on the new noise", default="1")
    parser.switch(
        "--absolute",
        "--strength is the standard deviation of the new noise, in units of the prior's, whatever TEMPERATURE is",
        "new noise has TEMPERATURE, and --strength is a factor on that",
    )
    add_animation(
        parser,
        "animate one group: its noise goes around a circle and returns; the group of --group, or else the one that "
        "changes the image most",
        f"{ANIMATION_SECONDS}",
    )
    add_result(parser, "the sample and of the jams")


def run(options: argparse.Namespace) -> None:
    _check(options)
    from statistics import fmean

    import torch

    from nvae.cli.result import Result, check_out, in_name, settings_of
    from nvae.data.pictures.image_files import read_image_files
    from nvae.inference.exploration import (
        base_point,
        draw_group_noise,
        explore,
        explore_positions,
        jam_sampler,
        mean_change,
        strength_of,
        sweep,
    )
    from nvae.inference.reconstruction import encode
    from nvae.inference.sampling import seed_noise
    from nvae.models.group_names import group_name
    from nvae.tools.animation import FRAMES_PER_SECOND
    from nvae.tools.exploration_pictures import (
        change_table,
        overview,
        positions_columns,
        positions_picture,
        shown_positions,
    )
    from nvae.tools.grids import stacked
    from nvae.tools.picking.selection import load_pick

    check_out(options)
    seed, picks = chosen_seed(options), [load_pick(reference) for reference in options.picks or ()]
    if picks:
        options.pixels = options.pixels or picks[0][0].pixels
        for name in ("model", "temperature", "iterations"):
            of_picks = [getattr(pick, name) for _, pick in picks]
            if getattr(options, name) is None and any(value != of_picks[0] for value in of_picks):
                raise UserError(f"the picks differ in {name}: give one for all, or explore the picks separately.")
            setattr(options, name, first_given(getattr(options, name), of_picks[0]))
    model, file_metadata = open_model_and_metadata(options)
    if options.group is not None and options.group > len(model.groups):
        raise InvalidValueError("--group", options.group, f"1 to {len(model.groups)}: 1 is the top group")
    options.temperature = temperature = with_context_temperature(options, model, options.temperature)
    iterations, pixels = first_given(options.iterations, ITERATIONS), chosen_pixels(options)
    bases, strength, originals = options.bases or 1, [options.strength], None
    start = f"bases{bases}" if bases > 1 else ""
    if options.image:  # the latents of pictures have the statistics of training, and their noise is of temperature 1
        pictures, warnings = read_image_files(options.image, model.config, model.device)
        print_warnings(warnings)
        noise, originals, start = encode(model, pictures), pictures, "_".join(path.stem for path in options.image)
        temperature, iterations = [1.0], 0
    elif picks:
        parts_of_noise = [seed_noise(model, [pick.seed], selection.scale_noise) for selection, pick in picks]
        noise = [torch.cat(group) for group in zip(*parts_of_noise, strict=True)]
        start = "pick" + "-".join(str(pick.seed) for _, pick in picks)
    else:
        noise = seed_noise(model, range(seed, seed + bases))
    sampler = make_sampler(options, model, temperature, iterations)
    views = [
        base_point(sampler, [group[i : i + 1] for group in noise], pixels, seed, options.absolute)
        for i in range(len(noise[0]))
    ]
    if options.image and not options.absolute:
        strength = strength_of(model, views[0], options.temperature, options.strength)
    settings = settings_of(options, sampler) | {
        "temperature": options.temperature,
        "image": ", ".join(map(str, options.image or ())),
        "from": ", ".join(options.picks or ()),
        "bases": len(views),
        "seed": seed,
        "strength": options.strength,
        "absolute": options.absolute,
    }
    parts = ["exploration", *in_name(settings, "model", "temperature"), start]
    parts += in_name(settings, "seed", "strength", "absolute", "pixels")
    group, jams = options.group and options.group - 1, options.jams or 1
    if group is None:
        images = [explore(sampler, view, jams, strength, seed) for view in views]
        print(change_table(model, views, images, file_metadata.get("kl_per_group")))
    if options.animate is not None:
        if group is None:
            group = max(range(len(images[0])), key=lambda index: mean_change(images[0][index], views[0].image))
        frames = max(2, round((options.seconds or ANIMATION_SECONDS) * FRAMES_PER_SECOND))
        settings |= {"group": group + 1, "frames": frames}
        result = Result(options, settings, *parts, *in_name(settings, "group"))
        result.finish_animation(sweep(sampler, views[0], group, frames, strength, seed))
        return
    if group is None:
        new_contexts = jam_sampler(sampler, views[0], 0).pseudo_inputs(draw_group_noise(model, 0, jams, seed, strength))
        picture = overview(model, views, images, options.difference, originals, new_contexts)
        settings |= {"group": 0, "jams": jams, "difference": options.difference}
        parts += in_name(settings, "jams", "difference")
    else:
        jams = options.jams or POSITION_JAMS
        *_, height, width = model.noise_shapes[group]
        columns = positions_columns(originals is not None, views[0].pseudo_input is not None and group == 0)
        shown = shown_positions(height * width, columns)
        positions = [explore_positions(sampler, view, group, jams, strength, seed, shown) for view in views]
        influence = fmean(of_base.influence.mean().item() for of_base in positions)
        position = "position" if model.groups[group].info.is_spatial else "coefficient"
        print(f"group {group_name(model, group)}: the mean change of a {position} is {influence:.4f}")
        of_bases = zip(views, positions, [None] * len(views) if originals is None else originals, strict=True)
        picture = stacked([positions_picture(model, view, group, *of_base) for view, *of_base in of_bases])
        settings |= {"group": options.group, "jams": jams, "difference": False}
        parts += [*in_name(settings, "group"), f"jams{jams}"]
    Result(options, settings, *parts).finish(picture)


def _check(options: argparse.Namespace) -> None:
    if sum(map(bool, (options.picks, options.image, options.bases))) > 1:
        raise UserError("--from, --image and --bases exclude each other: give one of them.")
    if not options.picks and (options.model is None or options.temperature is None):
        raise UserError("give MODEL and TEMPERATURE, such as quickstart 0.7, or --from FILE:N.")
    if options.animate is not None and max(len(options.picks or ()), len(options.image or ()), options.bases or 1) > 1:
        raise UserError("--animate moves the noise of one image: give one --from, --image or --bases 1.")
    if options.difference and (options.group or options.animate is not None):
        raise UserError("--difference draws all groups: leave out --group and --animate.")
    if options.animate is not None and options.jams:
        raise UserError("--animate moves the noise of one group: leave out --jams.")
    if options.seconds is not None and options.animate is None:
        raise UserError("--seconds needs --animate.")
