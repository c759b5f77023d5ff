"""What every command shares: how arguments are refused, how errors are said."""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from nvae.errors import UserError

BAD_INPUT = 2
INTERRUPTED = 130
ITERATIONS = 20
MOST_DIGITS = 18  # of a whole number
LONGEST_ANIMATION = 600


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help.\n")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process with its exit code.

    Bad input is 2 and one sentence on the standard error, without a traceback.
    """
    if os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's, which a program cannot draw in
        del os.environ["MPLBACKEND"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        code = INTERRUPTED
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print("error: the memory is not enough; ask for fewer images at once, or for --device cpu.", file=sys.stderr)
        code = BAD_INPUT
    except BrokenPipeError:  # as in `... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        gone = error.errno in (errno.EIO, errno.EPIPE)  # the terminal, to which nothing can be said any more
        if error.filename is None and not gone:
            raise
        with suppress(OSError):
            print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def natural(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    return _whole_number(text, 0)


def naturals(text: str) -> list[int]:
    """Whole numbers from 0 on, separated by commas, for argparse."""
    return [natural(part) for part in text.split(",")]


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    return _whole_number(text, 1)


def up_to(most: int) -> Callable[[str], int]:
    """A whole number from 1 to `most`, for argparse."""
    return lambda text: _whole_number(text, 1, most)


def _whole_number(text: str, least: int, most: float = float("inf")) -> int:
    if not text.isdecimal() or len(text) > MOST_DIGITS or not least <= int(text) <= most:
        allowed = f"from {least} on" if most == float("inf") else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {allowed}")
    return int(text)


def numbers(text: str) -> list[float]:
    """Finite numbers from 0 on, separated by commas, for argparse: a temperature, or one per scale."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on, such as 0.7, or some with commas")
    return values


def number(text: str) -> float:
    """A finite number from 0 on, for argparse."""
    values = numbers(text)
    if len(values) > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not one number")
    return values[0]


def seconds(text: str) -> float:
    """The length of an animation, for argparse: ten minutes at most."""
    value = number(text)
    if value > LONGEST_ANIMATION:
        raise argparse.ArgumentTypeError(f"'{text}' is more than {LONGEST_ANIMATION} seconds")
    return value


# ------------------------------------------------------------------------------------------ arguments of the tools


def add_model(parser: argparse.ArgumentParser, optional: Sequence[str] = ()) -> None:
    """MODEL TEMPERATURE [ITERATIONS]; optional: which of the first two another argument can stand for."""

    def count(name: str) -> dict[str, str]:
        return {"nargs": "?"} if name in optional else {}

    parser.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file", **count("model"))
    parser.add_argument(
        "temperature",
        type=numbers,
        metavar="TEMPERATURE",
        help="0.6 to 0.8 is usual, 1 the whole prior; or one per scale, the coarsest first, such as 0.6,0.8",
        **count("temperature"),
    )
    parser.add_argument(
        "iterations",
        type=natural,
        nargs="?",
        default=ITERATIONS,
        metavar="ITERATIONS",
        help=f"passes that recalibrate the batch norms to the temperature ({ITERATIONS}; 0 keeps those of training)",
    )


def add_seed_device_out(parser: argparse.ArgumentParser, of: str) -> None:
    """--seed, --device, --out; of: what the seed is of."""
    parser.add_argument("--seed", type=natural, help=f"of {of} (default: a random one)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the fastest there is)")
    parser.add_argument("--out", type=Path, default=Path("images"), metavar="FOLDER", help="where to save (images/)")


def say(warnings: Iterable[str]) -> None:
    """Print warnings, one per line."""
    for warning in warnings:
        print(warning)


def progress_bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    """A progress bar on a terminal; nothing in a file or a pipe."""
    from tqdm import tqdm

    return tqdm(items, description, leave=False, disable=None, delay=1)


def chosen_seed(options: argparse.Namespace) -> int:
    """The one that was asked for, or a random one."""
    return secrets.randbelow(10**6) if options.seed is None else options.seed


def same_again(seed: int) -> str:
    """The command that gives this result again."""
    program, *arguments = sys.argv
    if not any(argument == "--seed" or argument.startswith("--seed=") for argument in arguments):
        arguments += ["--seed", str(seed)]
    program = "-m nvae" if Path(program).name == "__main__.py" else shlex.quote(program)
    return f"the same again: python3 {program} {shlex.join(arguments)}"
