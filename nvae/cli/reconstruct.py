"""Show how well a model reconstructs pictures from its latents.

With --keep-groups, only the first latent groups are taken from the picture; the rest is sampled from the prior.
For a model with a context, the image that the context stands for is drawn after each picture.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from nvae.cli.arguments import (
    Parser,
    add_model,
    add_result,
    chosen_pixels,
    chosen_seed,
    factors,
    natural,
    print_warnings,
    several,
)
from nvae.cli.models import open_model
from nvae.cli.progress import progress_bar
from nvae.system.errors import InvalidValueError, UserError

LEVELS = "levels"
CELL = 128  # pixels of an image in the result


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("pictures", type=Path, nargs="+", metavar="FILE", help="pictures of any size")
    parser.option(
        "--keep-groups K[,K...]",
        _groups_kept,
        "take only the first K latent groups, the top group first, from the picture, or with the word levels: the "
        "groups of the first level, of the first two, and so on; a context is always taken and not counted, so 0 shows "
        "what the context alone carries",
        "all",
    )
    parser.option(
        "--temperature T[,T...]",
        factors,
        "with --keep-groups: temperature of the groups sampled from the prior, or one per scale or latent group",
        "0, the prior's mean",
    )
    add_result(parser, "the groups sampled from the prior")


def _groups_kept(text: str) -> list[int] | str:
    if text == LEVELS:
        return text
    try:
        return several(natural)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or {LEVELS}") from error


def run(options: argparse.Namespace) -> None:
    if options.temperature and not options.keep_groups:
        raise UserError("--temperature needs --keep-groups: all groups are taken from the picture.")
    import torch

    from nvae.checkpoint import weights_digest
    from nvae.cli.result import Result, check_out, in_name
    from nvae.data.pictures.image_files import read_image_files
    from nvae.inference.exploration import mean_change
    from nvae.inference.reconstruction import pseudo_inputs, reconstruct
    from nvae.models.group_names import first_groups_name, level_name
    from nvae.summary import table
    from nvae.tools.grids import grid

    check_out(options)
    model = open_model(options)
    above = model.groups_above_scales
    groups = len(model.groups) - above
    ends = list(itertools.accumulate(level.groups for level in model.scales))
    kept = ends if options.keep_groups == LEVELS else options.keep_groups or [groups]
    if wrong := [k for k in kept if k > groups]:
        below = f" below the {model.levels[0].name}" if above else ""
        raise InvalidValueError("--keep-groups", wrong[0], f"at most {groups}, the number of latent groups{below}")
    temperature = options.temperature or [0.0]
    pixels = chosen_pixels(options)
    random = (any(temperature) and min(kept) < groups) or pixels == "sample"
    seed = chosen_seed(options) if random else 0
    images, warnings = read_image_files(options.pictures, model.config, model.device)
    print_warnings(warnings)
    reconstructions = [
        reconstruct(model, images, keep, temperature, seed, pixels, progress=progress_bar) for keep in kept
    ]
    names = [first_groups_name(model, above + keep) for keep in kept]
    if options.keep_groups == LEVELS:
        names = [f"to {level_name(level)}: {name}" for name, level in zip(names, model.scales, strict=True)]
    titles, drawn = [f"{name} groups" for name in names], reconstructions
    if (contexts := pseudo_inputs(model, images)) is not None:
        names, titles, drawn = ["context", *names], ["context", *titles], [contexts, *drawn]
    rows = [("picture", *titles)]
    for index, path in enumerate(options.pictures):
        errors = (mean_change(column[index][None], images[index]) for column in drawn)
        rows.append((str(path), *(f"{error:.4f}" for error in errors)))
    print("mean absolute error, in a range from 0 to 1:\n" + "\n".join(table(rows)))
    per_picture = 1 + len(drawn)
    # The grid is square or a little wider than high.
    per_row = next(n for n in itertools.count(1) if n * per_picture >= -(-len(images) // n))
    cells = torch.stack([images, *drawn], dim=1).flatten(0, 1)
    captions = [caption for path in options.pictures for caption in (path.name, *names)]
    picture = grid(cells, per_picture * per_row, cell=CELL, captions=captions)
    settings = {
        "model": options.model,
        "weights": weights_digest(model),
        "seed": seed,
        "pixels": pixels,
        "pictures": [str(path) for path in options.pictures],
        "keep_groups": kept,
        "temperature": temperature,
    }
    groups_kept = ["groups" + "-".join(map(str, kept))] if options.keep_groups else []
    named = (["temperature"] if options.temperature else []) + (["seed"] if random else []) + ["pixels"]
    parts = ["reconstruction", *in_name(settings, "model"), *groups_kept, *in_name(settings, *named)]
    Result(options, settings, *parts).finish(picture)
