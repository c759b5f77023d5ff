"""Argument types, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import math
import os
import secrets
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from nvae.schema.choices import MAX_ITERATIONS, AnimationFormat, Part, Pixels
from nvae.system.files import ROOT, root_folder
from nvae.system.texts import one_line

T = TypeVar("T")

BAD_INPUT = 2  # exit code
ITERATIONS = 20
MAX_REPEATS = 1000  # of a factor
MAX_DIGITS = 18  # of a whole number
MAX_SECONDS = 600  # of an animation
MAX_FACTOR = 2.0  # usual temperature or factor on the noise; a higher one in a list is probably a decimal comma


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one line and exit code 2."""

    def option(self, flag: str, kind: Callable[[str], object], text: str, shown: object = None, **how: Any) -> None:
        """Add an option with a value, whose help ends with its default.

        flag: with the name of the value, such as "--rows N". kind: parses the value. shown: what the help says of the
        default, where that is not `default` itself. how: other arguments of `add_argument`.
        """
        name, _, metavar = flag.partition(" ")
        default = how.get("default") if shown is None else shown
        self.add_argument(name, type=kind, metavar=metavar or None, help=f"{text} (default: {default})", **how)

    def switch(self, flag: str, text: str, shown: str) -> None:
        """Add an option without a value."""
        self.add_argument(flag, action="store_true", help=f"{text} (default: {shown})")

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {one_line(message)}; see {self.prog} --help.\n")


# ------------------------------------------------------------------------------------------------------- types


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of whole numbers from `least`, up to `most` if that is given."""
    expected = f"a whole number from {least}" if most is None else f"a whole number from {least} to {most}"

    def parse(text: str) -> int:
        valid = text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text) >= least
        if not valid or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"got '{text}', expected {expected}")
        return int(text)

    return parse


def number_between(least: float, most: float) -> Callable[[str], float]:
    """Return the type of finite numbers from `least` to `most`, which may be infinite."""
    expected = f"a number from {least:g}" if most == math.inf else f"a number from {least:g} to {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"got '{text}', expected {expected}")
        return value

    return parse


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return the type of values separated by commas. kind: of one value."""
    return lambda text: [kind(part) for part in text.split(",")]


natural, positive = integer(0), integer(1)
iterations = integer(0, MAX_ITERATIONS)
number = number_between(0, math.inf)


def path_text(text: str) -> str:
    """Parse a path that a config can hold: not empty, and UTF-8."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty text, expected a path")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"got {ascii(text)}, which is not valid UTF-8, expected a path that a config can hold. Rename the folder"
        ) from error
    return text


def out_path(text: str) -> Path:
    """Parse --out; an empty text, the default, is the folder images/."""
    return Path(text) if text else root_folder() / "images"


def use_root(text: str) -> Path:
    """Make a folder the root folder of this process and of those that it starts."""
    os.environ[ROOT] = path_text(text)
    return root_folder()


def _repeated(text: str) -> list[float]:
    value, _, times = text.partition("x")
    return [number(value)] * (integer(1, MAX_REPEATS)(times) if "x" in text else 1)


def factors(text: str) -> list[float]:
    """Parse one factor, or several: per scale or per latent group; warn of what looks like a decimal comma.

    0.8x20 is 20 times 0.8.
    """
    values = [value for part in several(_repeated)(text) for value in part]
    has_point = "." in text
    if len(values) == 2 and (max(values) > MAX_FACTOR or (0 in values and not has_point)):
        suggestion = "" if has_point else f": {text.replace(',', '.')}"
        print(
            f"warning: {text} is read as two numbers, one per scale or latent group: {values[0]:g} and {values[1]:g}. "
            f"For one number, write a decimal point{suggestion}.",
            file=sys.stderr,
        )
    return values


# ------------------------------------------------------------------------------------------------ shared arguments


def add_model(parser: Parser, optional: bool = False) -> None:
    """Add MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?" if optional else None,
        help="a .checkpoint or .model file, or the name of a trained config, such as quickstart",
    )


def add_sampling(parser: Parser) -> None:
    """Add [TEMPERATURE], [ITERATIONS] and --context-temperature, None if not given."""
    parser.add_argument(
        "temperature",
        type=factors,
        nargs="?",
        metavar="TEMPERATURE",
        help="factor on the prior's standard deviations, or variances in the families ladder and dvp: 0.6 to 0.8 gives "
        "clean images, 1 the full variety; or one per scale, the coarsest first, such as 0.6,0.8, or one per latent "
        "group, the top group first, where 0.8x20 is 20 times 0.8; for a model with a context, one more number may "
        "come before those of the scales",
    )
    parser.add_argument(
        "iterations",
        type=iterations,
        nargs="?",
        metavar="ITERATIONS",
        help="passes that recalibrate the batch-norm statistics to the temperature; 0 keeps those of training "
        f"(default: {ITERATIONS})",
    )
    add_context_temperature(parser)


def add_context_temperature(parser: Parser) -> None:
    """Add --context-temperature."""
    parser.option(
        "--context-temperature T",
        number,
        "temperature of the context, for a model with a context",
        "that in the list of temperatures if it has more numbers than scales, else that of the top scale",
    )


def add_result(parser: Parser, seed_of: str, show_seeds: bool = False) -> None:
    """Add --pixels, --show-seeds if wanted, --seed, --device, --out and --no-window. seed_of: what the seed decides."""
    parser.option(
        "--pixels",
        str,
        "what to show of the pixel distribution p(x | z): its mean, its most likely value, or a random draw",
        "mean",
        choices=get_args(Pixels),
    )
    if show_seeds:
        parser.switch("--show-seeds", "print the seed below each image of a grid", "no text")
    parser.option("--seed N", natural, f"seed of {seed_of}", "random")
    add_device(parser)
    add_out(parser)


def add_root(parser: Parser) -> None:
    """Add --root, whose value `root_folder` returns from then on."""
    text = "the folder of saved_weights/, runs/, images/ and dataset/"
    parser.option("--root FOLDER", use_root, text, f"the environment variable {ROOT}, or the working directory")


def add_device(parser: Parser) -> None:
    """Add --device."""
    parser.option("--device DEVICE", str, "cuda, cuda:1, xpu, mps or cpu", "the fastest available")


def add_out(parser: Parser) -> None:
    """Add --out and --no-window."""
    parser.option("--out PATH", out_path, "folder for the result, or a file name such as a.png", "images", default="")
    parser.switch("--no-window", "open no window", "show the result if there is a display")


def add_out_folder(parser: Parser) -> None:
    """Add --out for several files."""
    parser.option("--out FOLDER", out_path, "folder for the results", "images", default="")


def add_model_data(parser: Parser, part: Part) -> None:
    """Add --dataset, --data and --part, by default the given part of the model's data set."""
    parser.option("--dataset NAME", str, "name of a data set, such as mnist or folder", "the model's data set")
    parser.option("--data PATH", str, "where its images are", "where they were in training")
    parser.option(
        "--part",
        str,
        "part of the data set; test needs a model trained with dataset.validation_images",
        choices=get_args(Part),
        default=part,
    )


def add_animation(parser: Parser, animate: str, default_seconds: str) -> None:
    """Add --animate and --seconds."""
    parser.add_argument(
        "--animate",
        choices=("auto", *get_args(AnimationFormat)),
        nargs="?",
        const="auto",
        metavar="FORMAT",
        help=f"{animate}; FORMAT: webp, gif, mp4, which needs the extra 'video', or auto: the suffix of --out, else "
        "webp (default: auto)",
    )
    parser.option("--seconds S", number_between(0, MAX_SECONDS), "length of the animation", default_seconds)


# ---------------------------------------------------------------------------------------------------- their values


def first_given(*values: T | None) -> T:
    """Return the first of an option's values that is not None."""
    return next(value for value in values if value is not None)


def animation_format(options: argparse.Namespace) -> AnimationFormat:
    """Return the format of --animate, or that of the file name in --out, or webp."""
    if options.animate not in (None, "auto"):
        return options.animate
    suffix = options.out.suffix.lower().removeprefix(".")
    return suffix if suffix in get_args(AnimationFormat) else "webp"


def chosen_pixels(options: argparse.Namespace) -> Pixels:
    """Return --pixels, or the mean."""
    return options.pixels or "mean"


def chosen_seed(options: argparse.Namespace) -> int:
    """Return --seed; set it to a random seed if it is not given."""
    if options.seed is None:
        options.seed = secrets.randbelow(10**6)
    return options.seed


def package_program() -> str:
    """Return how the package's program is called."""
    return "nvae" if Path(sys.argv[0]).stem == "nvae" else "python3 -m nvae"


def program() -> str:
    """Return the start of the command line: the script, or the package's program with the command."""
    return shlex.join(["python3", sys.argv[0]]) if _is_script() else f"{package_program()} {sys.argv[1]}"


def command_line(options: argparse.Namespace) -> str:
    """Return the command line, with the seed that was chosen if it has none: it makes the same result again."""
    arguments = sys.argv[1 if _is_script() else 2 :]
    seed = getattr(options, "seed", None)
    if seed is not None and not any(argument.partition("=")[0] == "--seed" for argument in arguments):
        end = arguments.index("--") if "--" in arguments else len(arguments)
        arguments[end:end] = ["--seed", str(seed)]
    return f"{program()} {shlex.join(arguments)}"


def _is_script() -> bool:
    return Path(sys.argv[0]).stem not in ("__main__", "nvae")


def print_warnings(warnings: list[str] | tuple[str, ...]) -> None:
    """Print warnings, one per line."""
    for warning in warnings:
        print(warning)
