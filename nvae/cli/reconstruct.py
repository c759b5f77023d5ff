"""Show how well a model reconstructs pictures from its latents.

With --keep-groups, only the first latent groups are taken from the picture; the rest is sampled from the prior.
For a model with a context, the image that the context stands for is drawn after each picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.cli.arguments import (
    add_device,
    add_model,
    add_no_window,
    add_out,
    add_pixels,
    add_seed,
    chosen_seed,
    naturals,
    per_scale,
    print_warnings,
    reproduce_with_seed,
)
from nvae.cli.models import open_model
from nvae.cli.progress import progress_bar
from nvae.system.errors import UserError

CELL = 128  # pixels of an image in the result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="FILE", help="pictures of any size")
    parser.add_argument(
        "--keep-groups",
        type=naturals,
        metavar="K[,K...]",
        help="take only the first K latent groups, the top group first, from the picture; a context is always taken "
        "and not counted, so 0 shows what the context alone carries (default: all)",
    )
    parser.add_argument(
        "--temperature",
        type=per_scale,
        metavar="T[,T...]",
        help="with --keep-groups: temperature of the groups sampled from the prior (default: 0, the prior's mean)",
    )
    add_pixels(parser)
    add_seed(parser, "the groups sampled from the prior")
    add_device(parser)
    add_out(parser)
    add_no_window(parser)


def run(options: argparse.Namespace) -> None:
    if options.temperature and not options.keep_groups:
        raise UserError("--temperature needs --keep-groups: all groups are taken from the picture.")
    import torch

    from nvae.checkpoint import plain_name, weights_digest
    from nvae.data.pictures.image_files import read_image_files
    from nvae.inference.arguments import format_values
    from nvae.inference.exploration import mean_change
    from nvae.inference.reconstruction import pseudo_inputs, reconstruct
    from nvae.models.group_names import first_groups_name
    from nvae.summary import table
    from nvae.tools.display import show
    from nvae.tools.grids import grid, is_file_name, result_name, save_result

    is_file_name(options.out, ".png")
    model = open_model(options)
    groups = sum(level.groups for level in model.scales)
    kept = options.keep_groups or [groups]
    if wrong := [k for k in kept if k > groups]:
        below = " below the context" if model.context is not None else ""
        raise UserError(f"--keep-groups is {wrong[0]}, expected at most {groups}, the number of latent groups{below}.")
    temperature = options.temperature or [0.0]
    pixels = options.pixels or "mean"
    random = (any(temperature) and min(kept) < groups) or pixels == "sample"
    seed = chosen_seed(options) if random else 0
    images, warnings = read_image_files(options.pictures, model.config, model.device)
    print_warnings(warnings)
    reconstructions = [
        reconstruct(model, images, keep, temperature, seed, pixels, progress=progress_bar) for keep in kept
    ]
    names = [first_groups_name(model, len(model.groups) - groups + keep) for keep in kept]
    titles, drawn = [f"{name} groups" for name in names], reconstructions
    if model.context is not None:
        names, titles, drawn = ["context", *names], ["context", *titles], [pseudo_inputs(model, images), *drawn]
    rows = [("picture", *titles)]
    for index, path in enumerate(options.pictures):
        errors = (mean_change(column[index][None], images[index]) for column in drawn)
        rows.append((str(path), *(f"{error:.4f}" for error in errors)))
    print("mean absolute error, in a range from 0 to 1:\n" + "\n".join(table(rows)))
    per_picture = 1 + len(drawn)
    cells = torch.stack([images, *drawn], dim=1).flatten(0, 1)
    captions = [caption for path in options.pictures for caption in (path.name, *names)]
    picture = grid(cells, per_picture * _pictures_per_row(len(images), per_picture), cell=CELL, captions=captions)
    metadata = {"model": options.model, "weights": weights_digest(model), "seed": seed, "pixels": pixels}
    metadata |= {"pictures": [str(path) for path in options.pictures], "keep_groups": kept}
    metadata |= {"temperature": temperature}
    parts = ["groups" + "-".join(map(str, kept)) if options.keep_groups else ""]
    parts += [f"temperature{format_values(options.temperature, '-')}" if options.temperature else ""]
    parts += [f"seed{seed}" if random else "", pixels if pixels != "mean" else ""]
    name = result_name("reconstruction", plain_name(options.model), *parts)
    saved = save_result(picture, options.out, name, metadata)
    print(saved)
    if random:
        print(reproduce_with_seed(seed))
    if not options.no_window:
        show(picture, saved.name)


def _pictures_per_row(pictures: int, cells: int) -> int:
    """Return how many pictures, of so many cells each, make a grid that is square or a little wider than high."""
    per_row = 1
    while per_row * cells < -(-pictures // per_row):
        per_row += 1
    return per_row
