"""Compute the statistics of a data set's images for the Frechet distance, once, and write them to an .npz file.

The file has the mean `mu` and the covariance `sigma` of the features, as other programs keep them; `quality
--statistics` reads such files.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import get_args

from nvae.cli.arguments import Parser, add_device, add_out_folder, print_warnings
from nvae.cli.config_options import add_config_options, load_config_of
from nvae.cli.progress import progress_bar
from nvae.cli.quality import add_extractors, open_extractors
from nvae.schema.choices import Part
from nvae.system.texts import counted


def add_arguments(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="path of a YAML file, or the name of a config")
    add_config_options(parser, ("dataset", "data", "size", "channels"))
    add_extractors(parser)
    parser.option("--part", str, "part of the data set", choices=get_args(Part), default="training")
    parser.switch(
        "--binary", "statistics of binary images, for --pixels sample of a binary model", "the images as they are"
    )
    add_device(parser)
    add_out_folder(parser)


def run(options: argparse.Namespace) -> None:
    from nvae.config import load_config
    from nvae.data.registry import load_original_images
    from nvae.evaluation.quality.distances import FeatureStatistics
    from nvae.evaluation.quality.measure import describe_images, reference_images
    from nvae.evaluation.quality.report import too_few_images
    from nvae.evaluation.quality.statistics_files import write_statistics
    from nvae.system.devices import choose_device, set_fast_defaults
    from nvae.system.errors import UserError
    from nvae.system.files import unused_path

    if options.weights is not None and len(options.extractors) > 1:
        raise UserError("--weights is for one extractor: name one with --extractors.")
    set_fast_defaults()
    config = load_config_of(options, partial(load_config, options.config))
    if options.binary and not config.dataset.binarize:
        raise UserError(f"--binary: the images of {options.config} are not binary. Use --set dataset.binarize=True.")
    data = load_original_images(config, progress=sys.stderr.isatty())
    print_warnings(data.warnings)
    device = choose_device(options.device)
    extractors = open_extractors(options, data.training, config.pixel_bits, device)
    images = reference_images(data, options.part, config, None, "sample" if options.binary else "mean")
    functions = {extractor.key: extractor for extractor in extractors}
    values = describe_images(images, images.own, functions, progress_bar)
    for extractor in extractors:
        facts = {
            "extractor": extractor.facts(),
            "dataset": config.dataset.model_dump(),
            "part": options.part,
            "images": len(images.own),
            "size": config.input_dimension,
            "binary": options.binary,
        }
        kind = f"{config.dataset.name}_{config.input_dimension}_{options.part}{'_binary' if options.binary else ''}"
        path = unused_path(options.out, f"statistics_{kind}_{len(images.own)}images_{extractor.name}", ".npz")
        statistics = FeatureStatistics.of(values[extractor.key])
        if statistics.has_too_few_images:
            print_warnings([too_few_images(extractor.name, extractor.dimensions)])
        write_statistics(path, statistics, facts)
        print(f"{counted(len(images.own), f'{options.part} image')}, extractor {extractor.name}: saved as {path}")
