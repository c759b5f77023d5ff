"""python3 -m nvae reconstruct: what is left of pictures in a model's latents."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from nvae.checkpoint import load_model, plain_name, weights_digest
from nvae.cli.command_line import (
    add_seed_device_out,
    chosen_seed,
    naturals,
    numbers,
    same_again,
)
from nvae.data.image_files import read_image_files
from nvae.devices import choose_device
from nvae.errors import UserError
from nvae.inference.exploration import mean_change
from nvae.inference.reconstruction import reconstruct
from nvae.summary import table
from nvae.tools.display import show
from nvae.tools.grids import grid, save_result

CELL = 128  # pixels of an image in a picture


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("reconstruct", help="what is left of pictures in a model's latents")
    command.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file")
    command.add_argument("pictures", type=Path, nargs="+", metavar="FILE", help="pictures of any size")
    command.add_argument(
        "--keep-groups",
        type=naturals,
        metavar="K[,K...]",
        help="only the first K latent groups are told about the picture, the prior chooses the others",
    )
    command.add_argument("--temperature", type=numbers, metavar="T[,T...]", help="of the others (0: what is expected)")
    add_seed_device_out(command, "those others")
    command.set_defaults(run=reconstruct_pictures)


def reconstruct_pictures(options: argparse.Namespace) -> None:
    if options.temperature and not options.keep_groups:
        raise UserError("--temperature is of the groups that are not kept: say --keep-groups with it.")
    model = load_model(options.model, choose_device(options.device))
    groups = len(model.groups)
    kept = options.keep_groups or [groups]
    if wrong := [k for k in kept if k > groups]:
        raise UserError(f"--keep-groups is {wrong[0]}; the model has {groups} latent groups.")
    temperature = options.temperature or [0.0]
    random = any(temperature) and min(kept) < groups
    seed = chosen_seed(options) if random else 0
    images, notices = read_image_files(options.pictures, model.config, model.device)
    for notice in notices:
        print(notice)
    bar = tqdm(kept, "reconstructing", leave=False, disable=None, delay=1)
    found = [reconstruct(model, images, keep, temperature, seed) for keep in bar]
    rows = [("picture", *(f"{keep} of {groups} groups" for keep in kept))]
    for index, path in enumerate(options.pictures):
        errors = (mean_change(images_of_k[index][None], images[index]) for images_of_k in found)
        rows.append((str(path), *(f"{error:.4f}" for error in errors)))
    print("mean absolute error, of a range from 0 to 1:\n" + "\n".join(table(rows)))
    cells = torch.stack([images, *found], dim=1).flatten(0, 1)  # a row per picture
    captions = ["picture", *(f"{keep} of {groups}" for keep in kept)] * len(images)
    picture = grid(cells, 1 + len(kept), cell=CELL, captions=captions)
    about = {"model": options.model, "weights": weights_digest(model), "seed": seed}
    about |= {"pictures": [str(path) for path in options.pictures], "keep_groups": kept}
    about |= {"temperature": options.temperature or [0.0]}
    saved = save_result(picture, options.out, f"reconstruction_{plain_name(options.model)}", about)
    print(saved)
    if random:
        print(same_again(seed))
    show(picture, saved.name)
