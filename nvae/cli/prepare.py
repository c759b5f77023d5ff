"""Decode a data set before training: into the cache that training uses, or into LMDB databases.

The databases have the layout of the original NVAE: its program reads them too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae.cli.arguments import Parser, path_text, positive, print_warnings
from nvae.cli.config_options import add_set
from nvae.cli.dataset_sheet import describe
from nvae.system.errors import InvalidValueError, UserError

if TYPE_CHECKING:
    from nvae.data.images import Data
    from nvae.schema import ModelConfig

# A model that suits images of every size; only its images matter here.
MODEL = {
    "channel_towers": 1,
    "number_of_scales": 1,
    "initial_splits_per_scale": 1,
    "latent_size": 1,
    "num_blocks_prepost": 0,
}
SIZE, CHANNELS = 64, 3


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=path_text,
        help="a folder of pictures, a zip or tar archive, an .npz or .npy file, a folder of LMDB databases, or the "
        "name of a data set, such as celeba",
    )
    parser.option(
        "--size S",
        positive,
        "width and height of the images, input_dimension of the config",
        f"that of the named data set, else {SIZE}",
    )
    parser.option(
        "--channels",
        int,
        "3 for color, 1 for gray, image_channels of the config",
        f"that of the named data set, else {CHANNELS}",
        choices=(1, 3),
    )
    parser.option(
        "--data DIR", path_text, "folder of the named data set's files", "dataset/NAME, such as dataset/celeba"
    )
    add_set(parser, "dataset.KEY=VALUE", "override a key of the dataset section, such as dataset.fit=pad")
    parser.option(
        "--lmdb DIR",
        Path,
        "write train.lmdb, validation.lmdb and, with test images, test.lmdb into this new folder; needs the "
        "extra 'lmdb'",
        "write the cache",
    )
    parser.switch(
        "--encode",
        "with --lmdb: write PNG files, which are smaller, but which the original program does not read",
        "raw RGB bytes, as the original program reads them",
    )


def run(options: argparse.Namespace) -> None:
    if options.encode and options.lmdb is None:
        raise UserError("--encode is for databases. Use --lmdb DIR as well.")
    config = _config(options)
    if options.lmdb is None:
        _prepare_cache(config, options.source)
    else:
        _prepare_lmdb(config, options)


def _prepare_cache(config: ModelConfig, source: str) -> None:
    from nvae.data.cache import cache_folder
    from nvae.schema import PictureDataset

    data = _load(config, source, cache=True)
    if isinstance(config.dataset, PictureDataset):
        size = sum(part.numel() for part in (data.training, data.validation, data.test) if part is not None)
        print(f"the images are in the cache, {cache_folder()}: {size / 1e6:,.1f} MB")
    else:
        print(f"{config.dataset.name} needs no cache: its images are arrays already")
    _print_yaml(config, config.dataset.model_dump(mode="json", exclude_unset=True))


def _prepare_lmdb(config: ModelConfig, options: argparse.Namespace) -> None:
    from nvae.data.loaders.lmdb_files import import_lmdb, write_lmdb
    from nvae.system.files import check_new_folder

    check_new_folder(options.lmdb)  # before the long work
    import_lmdb()
    data = _load(config, options.source)
    write_lmdb(options.lmdb, data, options.encode, sys.stderr.isatty())
    for path in sorted(options.lmdb.iterdir()):
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"written: {path}, {size / 1e6:,.1f} MB")
    _print_yaml(config, {"name": "lmdb", "path": str(options.lmdb)})


# ------------------------------------------------------------------------------------------------------ the data set


def _config(options: argparse.Namespace) -> ModelConfig:
    """Return a config with the images that the options describe."""
    import yaml

    from nvae.config import parse_config
    from nvae.schema import NAMED_DATASETS

    for override in options.overrides:
        key = override.partition("=")[0].strip()
        if not key.startswith("dataset.") or key in ("dataset.name", "dataset.path"):
            expected = "dataset.KEY=VALUE with a key other than name and path"
            raise InvalidValueError("--set", f"'{override}'", expected, "Use SOURCE and --data for these two.")
    facts = NAMED_DATASETS.get(options.source)
    values = {
        "input_dimension": options.size or (facts.size if facts else SIZE),
        "image_channels": options.channels or (facts.channels if facts else CHANNELS),
    } | {f"dataset.{key}": value for key, value in _dataset(options).items()}
    given = [f"{key}={value}" for key, value in values.items()]
    return parse_config(yaml.safe_dump(MODEL), [*given, *options.overrides])


def _dataset(options: argparse.Namespace) -> dict[str, Any]:
    """Return the dataset section for SOURCE: a data set's name, or else a path."""
    from nvae.config.errors import nearest
    from nvae.data.loaders.lmdb_files import DATABASES
    from nvae.schema import DATASETS

    names = [name for name in DATASETS if name not in ("folder", "lmdb", "npz", "tfrecord")]
    if options.source in names:
        return {"name": options.source} | ({"path": options.data} if options.data else {})
    path = Path(options.source)
    if not path.exists():
        name = nearest(options.source, names)
        advice = f"Did you mean {name}?" if name else f"The data sets are {', '.join(names)}."
        raise UserError(
            f"SOURCE is '{options.source}', which does not exist; expected a folder, an archive or a data set. {advice}"
        )
    if options.data:
        raise UserError("--data is for the name of a data set, but SOURCE is a path. Leave --data out.")
    if path.suffix.lower() in (".npz", ".npy"):
        name = "npz"
    elif path.suffix.lower() in (".tfrecord", ".tfrecords"):
        name = "tfrecord"
    else:
        name = "lmdb" if (path / DATABASES["training"]).exists() else "folder"
    return {"name": name, "path": options.source}


def _load(config: ModelConfig, source: str, cache: bool = False) -> Data:
    """Load the data set, and print what was read and what was left out."""
    from nvae.data.registry import load_data

    data = load_data(config, sys.stderr.isatty(), cache)
    print(f"{source}: {describe(data)}")
    print_warnings([data.report.rstrip()] if data.report else data.warnings)
    return data


def _print_yaml(config: ModelConfig, dataset: dict[str, Any]) -> None:
    """Print the lines of a config that use the result."""
    import yaml

    section = yaml.safe_dump(dataset, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    print(
        f"in the config:\n  input_dimension: {config.input_dimension}\n  image_channels: {config.image_channels}\n"
        f"  dataset: {section.rstrip()}"
    )
