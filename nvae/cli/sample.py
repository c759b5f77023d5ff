"""Sample from a model: a grid in one picture, or many single pictures."""

from __future__ import annotations

import argparse

from nvae.cli.arguments import (
    ITERATIONS,
    add_context_temperature,
    add_device,
    add_model,
    add_no_window,
    add_out,
    add_pixels,
    add_sampling,
    add_seed,
    add_show_seeds,
    chosen_seed,
    factors,
    numbers,
    positive,
    reproduce_with_seed,
    up_to,
)
from nvae.cli.models import open_model, open_sampler, open_samplers, with_context_temperature
from nvae.system.errors import UserError

ROWS, COLUMNS, SWEEP_COLUMNS = 3, 3, 8
IMAGES_PER_STEP = 256  # that are held before they are saved one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sampling(parser)
    parser.add_argument(
        "--temperature",
        dest="temperature_option",
        type=factors,
        metavar="T[,T...]",
        help="the temperature as an option; then only ITERATIONS may follow MODEL (default: TEMPERATURE)",
    )
    add_context_temperature(parser)
    parser.add_argument(
        "--sweep",
        type=numbers,
        metavar="T,T,...",
        help="draw one row per temperature, all of the same seeds; then only ITERATIONS may follow MODEL "
        "(default: one temperature)",
    )
    parser.add_argument("--rows", type=up_to(100), metavar="N", help=f"rows of the grid (default: {ROWS})")
    parser.add_argument(
        "--columns",
        type=up_to(100),
        metavar="N",
        help=f"columns of the grid (default: {COLUMNS}, with --sweep {SWEEP_COLUMNS})",
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="save N single images as PNG files in the folder --out (default: one grid)",
    )
    add_pixels(parser)
    add_show_seeds(parser)
    add_seed(parser, "the first image; the others have the following seeds")
    add_device(parser)
    add_out(parser)
    add_no_window(parser)


def run(options: argparse.Namespace) -> None:
    _resolve(options)
    import torch

    from nvae.checkpoint import plain_name, weights_digest
    from nvae.inference.arguments import format_values
    from nvae.tools.display import show
    from nvae.tools.grids import grid, is_file_name, result_name, save_result, single

    if is_file_name(options.out, ".png") and options.count:
        raise UserError(f"--count saves several files: got --out {options.out}, expected a folder.")
    model = open_model(options)
    first_seed = chosen_seed(options)
    given = [[temperature] for temperature in options.sweep] if options.sweep else [options.temperature]
    temperatures = [with_context_temperature(options, model, temperature) for temperature in given]  # one per row
    of_context = options.context_temperature
    metadata = {"model": options.model, "weights": weights_digest(model), "temperature": temperatures[0]}
    settings = [f"temperature{format_values(temperatures[0], '-')}"]
    if options.sweep:
        metadata["temperature"] = options.sweep if of_context is None else temperatures
        settings = [f"sweep{format_values(options.sweep, '-')}"]
        settings += [] if of_context is None else [f"context{of_context:g}"]
    metadata |= {"iterations": options.iterations, "pixels": options.pixels}
    settings += [f"iterations{options.iterations}"]
    settings += [options.pixels] if options.pixels != "mean" else []

    def name(seed: object) -> str:
        return result_name("sample", plain_name(options.model), *settings, f"seed{seed}")

    if options.count:
        seeds = range(first_seed, first_seed + options.count)
        digits = len(str(seeds[-1]))
        sampler, _ = open_sampler(model, options.model, temperatures[0], options.iterations)
        for start in range(0, len(seeds), IMAGES_PER_STEP):
            batch = seeds[start : start + IMAGES_PER_STEP]
            for seed, image in zip(batch, sampler.sample(batch, options.pixels).cpu(), strict=True):
                saved = save_result(single(image), options.out, name(f"{seed:0{digits}}"), metadata | {"seed": seed})
        print(f"{len(seeds)} images in {options.out}, the last one {saved.name}: seeds {first_seed} to {seeds[-1]}")
        print(reproduce_with_seed(first_seed))
        return
    columns = options.columns or (SWEEP_COLUMNS if options.sweep else COLUMNS)
    seeds = range(first_seed, first_seed + columns * (1 if options.sweep else options.rows or ROWS))
    samplers = open_samplers(model, options.model, temperatures, options.iterations)
    images = torch.cat([sampler.sample(seeds, options.pixels).cpu() for sampler in samplers])
    labels = [f"t = {temperature:g}" for temperature in options.sweep or []]
    captions = [str(seed) for seed in seeds] * len(temperatures) if options.show_seeds else []
    picture = grid(images, columns, cell=160 if columns < 8 else 96, labels=labels, captions=captions)
    metadata |= {"seed": first_seed, "images": len(seeds), "columns": columns, "show_seeds": options.show_seeds}
    saved = save_result(picture, options.out, name(first_seed), metadata)
    print(f"{saved}: seeds {first_seed} to {seeds[-1]}")
    print(reproduce_with_seed(first_seed))
    if not options.no_window:
        show(picture, saved.name)


def _resolve(options: argparse.Namespace) -> None:
    """Check the combination of the options; set `temperature`, `iterations` and `pixels`. Raises UserError."""
    if options.sweep and options.temperature_option:
        raise UserError("--sweep and --temperature exclude each other: give one of them.")
    if options.sweep or options.temperature_option:  # MODEL ITERATIONS
        if options.temperature is not None:
            value = options.temperature[0]
            if options.iterations is not None or len(options.temperature) > 1 or not value.is_integer():
                raise UserError("with --temperature or --sweep, only ITERATIONS, a whole number, may follow MODEL.")
            options.iterations = int(value)
        options.temperature = options.temperature_option
    options.iterations = ITERATIONS if options.iterations is None else options.iterations
    options.pixels = options.pixels or "mean"
    if options.temperature is None and options.sweep is None:
        raise UserError("the temperature is missing: give TEMPERATURE, such as 0.7, or --sweep with several.")
    if options.sweep and (options.rows or options.count):
        raise UserError("--sweep draws one row per temperature: leave out --rows and --count.")
    if options.count and (options.rows or options.columns or options.show_seeds):
        raise UserError("--count saves single images: leave out --rows, --columns and --show-seeds.")
