"""Sample from a model: a grid in one picture, many single pictures, or one array of many images."""

from __future__ import annotations

import argparse
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from nvae.cli.arguments import (
    ITERATIONS,
    Parser,
    add_model,
    add_result,
    add_sampling,
    chosen_pixels,
    chosen_seed,
    factors,
    first_given,
    integer,
    number,
    positive,
    several,
)
from nvae.cli.models import make_samplers, open_model, with_context_temperature
from nvae.system.errors import InvalidValueError, UserError
from nvae.system.texts import counted

if TYPE_CHECKING:
    from torch import Tensor

    from nvae.cli.result import Result

ROWS, COLUMNS, SWEEP_COLUMNS = 3, 3, 8
IMAGES_PER_STEP = 256  # sampled while those before are saved one by one
WRITERS = 4  # threads, which also wait for the disk


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    add_sampling(parser)
    parser.option(
        "--temperature T[,T...]",
        factors,
        "the temperature as an option; then only ITERATIONS may follow MODEL",
        "TEMPERATURE",
        dest="temperature_option",
    )
    parser.option(
        "--sweep T,T,...",
        several(number),
        "draw one row per temperature, all of the same seeds; then only ITERATIONS may follow MODEL",
        "one temperature",
    )
    parser.option("--rows N", integer(1, 100), "rows of the grid", ROWS)
    parser.option("--columns N", integer(1, 100), "columns of the grid", f"{COLUMNS}, with --sweep {SWEEP_COLUMNS}")
    parser.option("--count N", positive, "save N single images as PNG files in the folder --out", "one grid")
    parser.switch(
        "--npz",
        "with --count: save the N images as one .npz file, which programs that compute FID read",
        "single files",
    )
    add_result(parser, "the first image; the others have the following seeds", show_seeds=True)


def run(options: argparse.Namespace) -> None:
    _resolve(options)
    import torch

    from nvae.cli.progress import with_progress
    from nvae.cli.result import Result, check_out, in_name, settings_of
    from nvae.data.arrays import write_npz
    from nvae.data.images import to_pixels
    from nvae.data.threads import map_in_threads
    from nvae.inference.arguments import format_values
    from nvae.system.files import unused_path
    from nvae.system.progress import batches
    from nvae.tools.grids import grid, is_file_name, single

    check_out(options)
    if options.count and is_file_name(options.out, ".png"):
        raise InvalidValueError("--out", f"'{options.out}'", "a folder, because --count saves several files")
    model = open_model(options)
    first_seed = chosen_seed(options)
    given = [[temperature] for temperature in options.sweep] if options.sweep else [options.temperature]
    temperatures = [with_context_temperature(options, model, temperature) for temperature in given]  # one per row
    pixels = chosen_pixels(options)
    samplers = make_samplers(options, model, temperatures, options.iterations)
    settings = settings_of(options, samplers[0])
    of_temperature = in_name(settings, "temperature")
    if options.sweep:
        of_context = options.context_temperature
        settings["temperature"] = options.sweep if of_context is None else temperatures
        of_temperature = [f"sweep{format_values(options.sweep, '-')}"]
        of_temperature += [] if of_context is None else [f"context{of_context:g}"]
    parts = ["sample", *in_name(settings, "model"), *of_temperature, *in_name(settings, "iterations", "pixels")]
    if options.count:
        seeds = range(first_seed, first_seed + options.count)
        parts_of_seeds = [seeds[part] for part in batches(len(seeds), IMAGES_PER_STEP)]
        bar = with_progress(parts_of_seeds, len(seeds), "sampling")
        drawn = ((part, samplers[0].sample(part, pixels).cpu()) for part in bar)
        count = counted(len(seeds), "image")
        if options.npz:
            result = Result(options, settings, *parts, f"seed{first_seed}", f"count{len(seeds)}")
            is_file = options.out.suffix.lower() == ".npz" and not options.out.is_dir()
            saved = options.out if is_file else unused_path(options.out, result.name, ".npz")
            write_npz(saved, len(seeds), (to_pixels(images) for _, images in drawn))
            print(f"{count} in {saved}: seeds {first_seed} to {seeds[-1]}")
        else:
            digits = len(str(seeds[-1]))

            def save(job: tuple[int, Tensor]) -> tuple[Result, Path]:
                seed, image = job
                result = Result(options, settings | {"seed": seed}, *parts, f"seed{seed:0{digits}}")
                return result, result.save(single(image))

            jobs = ((seed, image) for part, images in drawn for seed, image in zip(part, images, strict=True))
            with closing(map_in_threads(save, jobs, WRITERS, ahead=IMAGES_PER_STEP)) as written:
                [(result, saved)] = deque(written, maxlen=1)
            print(f"{count} in {options.out}, the last one {saved.name}: seeds {first_seed} to {seeds[-1]}")
        print(f"to reproduce: {result.settings['command']}")
        return
    columns = options.columns or (SWEEP_COLUMNS if options.sweep else COLUMNS)
    seeds = range(first_seed, first_seed + columns * (1 if options.sweep else options.rows or ROWS))
    rows = []
    while samplers:  # given up one after another, so that only one of them holds its copy of the model
        rows.append(samplers.pop(0).sample(seeds, pixels).cpu())
    images = torch.cat(rows)
    labels = [f"t = {temperature:g}" for temperature in options.sweep or []]
    captions = [str(seed) for seed in seeds] * len(temperatures) if options.show_seeds else []
    picture = grid(images, columns, cell=160 if columns < 8 else 96, labels=labels, captions=captions)
    settings |= {"seed": first_seed, "images": len(seeds), "columns": columns, "show_seeds": options.show_seeds}
    result = Result(options, settings, *parts, *in_name(settings, "seed"))
    result.finish(picture, f": seeds {first_seed} to {seeds[-1]}")


def _resolve(options: argparse.Namespace) -> None:
    """Check the combination of the options; set `temperature` and `iterations`. Raises UserError."""
    if options.sweep and options.temperature_option:
        raise UserError("--sweep and --temperature exclude each other: give one of them.")
    if options.sweep or options.temperature_option:  # MODEL ITERATIONS
        if options.temperature is not None:
            value = options.temperature[0]
            if options.iterations is not None or len(options.temperature) > 1 or not value.is_integer():
                raise UserError("with --temperature or --sweep, only ITERATIONS, a whole number, may follow MODEL.")
            options.iterations = int(value)
        options.temperature = options.temperature_option
    options.iterations = first_given(options.iterations, ITERATIONS)
    if options.temperature is None and options.sweep is None:
        raise UserError("the temperature is missing: give TEMPERATURE, such as 0.7, or --sweep with several.")
    if options.sweep and (options.rows or options.count):
        raise UserError("--sweep draws one row per temperature: leave out --rows and --count.")
    if options.npz and not options.count:
        raise UserError("--npz needs the number of images: give --count N.")
    if options.count and (options.rows or options.columns or options.show_seeds):
        raise UserError("--count saves single images: leave out --rows, --columns and --show-seeds.")
