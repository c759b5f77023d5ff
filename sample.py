"""Sample a 3x3 grid: python3 sample.py saved_weights/quickstart.checkpoint 0.7 20"""

import secrets
from pathlib import Path

from nvae.checkpoint import load_model, plain_name
from nvae.command_line import Parser, natural, run, temperature
from nvae.devices import choose_device
from nvae.sampling.batch_norm import readjusted
from nvae.sampling.grids import grid, save_picture, show
from nvae.sampling.samples import sample


def arguments():
    parser = Parser(description="Sample nine images from a model, save them as one picture, and show it.")
    parser.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file")
    parser.add_argument(
        "temperature", type=temperature, metavar="TEMPERATURE", help="0.6 to 0.8 is usual, 1 the whole prior"
    )
    parser.add_argument(
        "iterations",
        type=natural,
        nargs="?",
        default=20,
        metavar="ITERATIONS",
        help="passes that readjust the batch norms to the temperature (default 20; 0 keeps those of training)",
    )
    parser.add_argument(
        "--seed", type=natural, help="the first image's seed, the others follow (default: a random one)"
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the fastest there is)")
    parser.add_argument("--out", type=Path, default=Path("images"), metavar="FOLDER", help="where to save (images/)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = choose_device(options.device)
    model = load_model(options.model, device)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    seeds = range(seed, seed + 9)
    with readjusted(model, options.temperature, options.iterations, progress=True):
        picture = grid(sample(model, seeds, options.temperature), columns=3)
    settings = f"temperature{options.temperature:g}_iterations{options.iterations}_seed{seed}"
    name = f"sample_{plain_name(options.model)}_{settings}.png"
    about = {
        "model": options.model,
        "temperature": options.temperature,
        "iterations": options.iterations,
        "seed": seed,  # of the first image; the others follow
    }
    saved = save_picture(picture, options.out / name, about)
    again = f"python3 sample.py {options.model} {options.temperature:g} {options.iterations} --seed {seed}"
    print(f"{saved}: seeds {seed} to {seeds[-1]}; the same again: {again}")
    show(picture, name)


if __name__ == "__main__":
    run(main)
