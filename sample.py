"""Sample from a model: python3 sample.py saved_weights/quickstart.checkpoint 0.7 20"""

from typing import get_args

import torch
from tqdm import tqdm

from nvae.arguments import format_values
from nvae.checkpoint import load_model, plain_name
from nvae.cli import command_line
from nvae.cli.command_line import numbers, positive, up_to
from nvae.devices import choose_device
from nvae.inference.sampling import BATCH_SIZE, Pixels, Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.tools.display import show
from nvae.tools.grids import grid, save_result, single


def arguments():
    parser = command_line.Parser(description="Sample from a model: a grid in one picture, or many single ones.")
    command_line.add_model(parser, optional=("temperature",))
    parser.add_argument("--temperature", dest="other", type=numbers, metavar="T[,T...]", help="in place of TEMPERATURE")
    parser.add_argument("--sweep", type=numbers, metavar="T,T,...", help="a row per temperature, all of the same seeds")
    parser.add_argument("--rows", type=up_to(100), metavar="N", help="of the grid (3)")
    parser.add_argument("--columns", type=up_to(100), metavar="N", help="of the grid (3; of a sweep 8)")
    parser.add_argument("--count", type=positive, metavar="N", help="N single images, each a PNG in the folder --out")
    parser.add_argument("--pixels", choices=get_args(Pixels), default="mean", help="what is shown of p(x | z) (mean)")
    command_line.add_seed_device_out(parser, "the first image; the others have the next ones")
    parser.set_defaults(iterations=None)
    options = parser.parse_intermixed_args()
    if options.sweep and options.other:
        parser.error("--temperature is one for all rows and --sweep one for each: give one of the two")
    if (options.sweep or options.other) and options.temperature is not None:  # MODEL ITERATIONS then
        if options.iterations is not None or len(options.temperature) > 1 or not options.temperature[0].is_integer():
            parser.error("--temperature and --sweep take the place of TEMPERATURE: after MODEL give ITERATIONS alone")
        options.iterations, options.temperature = int(options.temperature[0]), None
    options.temperature = options.other or options.temperature
    options.iterations = command_line.ITERATIONS if options.iterations is None else options.iterations
    if options.temperature is None and options.sweep is None:
        parser.error("give a TEMPERATURE, such as 0.7, or --sweep with several")
    if options.sweep and (options.rows or options.count):
        parser.error("--sweep has a row per temperature: leave out --rows and --count")
    if options.count and (options.rows or options.columns):
        parser.error("--count makes single images: leave out --rows and --columns")
    return options


def main() -> None:
    options = arguments()
    model = load_model(options.model, choose_device(options.device))
    cache = StatisticsCache(model, options.model)
    seed = command_line.chosen_seed(options)
    temperatures = [[t] for t in options.sweep] if options.sweep else [options.temperature]
    about = {"model": options.model, "weights": cache.weights, "temperature": options.sweep or options.temperature}
    about |= {"iterations": options.iterations, "pixels": options.pixels}
    kind = "" if options.pixels == "mean" else f"_{options.pixels}"
    settings = f"temperature{format_values(about['temperature'], '-')}_iterations{options.iterations}{kind}"
    name = f"sample_{plain_name(options.model)}_{settings}_seed"

    def passes(temperature, seeds):
        sampler = Sampler(model, temperature, options.iterations, cache, progress=command_line.progress_bar)
        command_line.say(sampler.warnings)
        for first in tqdm(range(0, len(seeds), BATCH_SIZE), "sampling", leave=False, disable=None, delay=1):
            part = seeds[first : first + BATCH_SIZE]
            yield part, sampler.sample(part, options.pixels).cpu()

    if options.count:
        seeds = range(seed, seed + options.count)
        for part, images in passes(options.temperature, seeds):
            for each, image in zip(part, images, strict=True):
                saved = save_result(single(image), options.out, f"{name}{each}", about | {"seed": each})
        print(f"{len(seeds)} images in {options.out}, the last one {saved.name}: seeds {seed} to {seeds[-1]}")
    else:
        columns = options.columns or (8 if options.sweep else 3)
        seeds = range(seed, seed + columns * (1 if options.sweep else options.rows or 3))
        images = torch.cat([images for temperature in temperatures for _, images in passes(temperature, seeds)])
        labels = [f"t = {t:g}" for t in options.sweep or []]
        picture = grid(images, columns, cell=160 if columns < 8 else 96, labels=labels)
        saved = save_result(picture, options.out, f"{name}{seed}", about | {"seed": seed, "images": len(seeds)})
        print(f"{saved}: seeds {seed} to {seeds[-1]}")
    print(command_line.same_again(seed))
    if not options.count:
        show(picture, saved.name)


if __name__ == "__main__":
    command_line.run(main)
