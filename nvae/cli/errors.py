"""Run a command: exit codes, one line for every error, and output streams whose loss does not end the run."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from nvae.cli.arguments import BAD_INPUT
from nvae.system.errors import Remedy, UserError, is_out_of_memory
from nvae.system.signals import hangups
from nvae.system.texts import one_line, printable

MEMORY_HINTS = {
    "train": "Set a smaller training_parameters.batch_size, or training_parameters.use_tensor_checkpoints=True, with "
    "--set KEY=VALUE.",
    "evaluate": "Use a smaller --batch-size, or --device cpu.",
    "quality": "Use fewer --images, or --device cpu.",
    "precompute": "Use --device cpu, or a --part of fewer images.",
}
# What a remedy, which the library names without flags, is called on the command line.
SET_KEY = "Use --set KEY=VALUE, or change the YAML file."
OTHER_DATA = "Use --dataset NAME and --data FOLDER."
OF_OPTIONS = {Remedy.CONFIG_KEY: "Use --set KEY=VALUE.", Remedy.IMAGE_SIZE: "Use --size."}
HINTS = {
    "train": {
        Remedy.START_OVER: "Add --fresh to start over.",
        Remedy.START_OVER_FROM_FILE: "Add --fresh --checkpoint FILE to start over from a file.",
        Remedy.RUN_NAME: "Use --name NAME for another name.",
        Remedy.CHANGED_DATA: "Add --continue-with-changed-data to continue.",
        Remedy.DATASET_PATH: f"For dataset.path, use --data PATH. {SET_KEY}",
        Remedy.CONFIG_KEY: SET_KEY,
        Remedy.IMAGE_SIZE: SET_KEY,
    },
    "prepare": OF_OPTIONS
    | {
        Remedy.DATASET_PATH: "SOURCE is dataset.path, or for the name of a data set, --data.",
        Remedy.CONFIG_KEY: "Use --set dataset.KEY=VALUE.",
    },
    "datasets": {Remedy.DATASET_PATH: "Use --data DIR, or --set KEY=VALUE."} | OF_OPTIONS,
    "precompute": {Remedy.DATASET_PATH: OTHER_DATA} | OF_OPTIONS,
    **dict.fromkeys(("evaluate", "quality"), {Remedy.DATASET_PATH: OTHER_DATA, Remedy.CONFIG_KEY: OTHER_DATA}),
    "import": {Remedy.MODEL_CONFIG: "Use --config YAML to name the right config."},
}
INTERRUPTED = 130
OF_THE_DISK = (errno.EIO, errno.EPIPE, errno.ENOSPC, errno.ESTALE)
SAMPLING_MEMORY_HINT = "Ask for fewer images at once, or use --device cpu."


class SafeStream:
    """A text stream that may be lost (a closed terminal, `| head`, a full disk); later text is then dropped.

    Control characters, which names and files may hold, are escaped, but for the cursor's moves before a progress bar.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = False

    def write(self, text: str) -> int:
        moves = re.match(r"\r?\n*(\x1b\[A)*", text)
        start = moves.end() if moves else 0
        self._try(lambda: self._stream.write(text[:start] + printable(text[start:], keep="\n\t")))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            action()
        except BlockingIOError:  # a terminal that is busy: this text is lost, the next one may not be
            pass
        except (OSError, ValueError):  # ValueError: closed
            self._lost = True
            # Text that is still buffered must not fail at exit.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Replace standard output and standard error by streams whose loss does not end the program."""
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115, it lives as long as the process
        if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, SafeStream(stream))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def run(main: Callable[[], int | None], command: str = "") -> NoReturn:
    """Run a command and leave the process with its exit code.

    command: its name, for hints. A UserError is one line on standard error without a traceback, and its exit code: 2
    for bad input, 3 for a training that diverged.
    """
    with safe_output(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _exit_code(main, command)
    sys.exit(code)


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    print(f"warning: {one_line(str(message))}", file=sys.stderr)


def _exit_code(main: Callable[[], int | None], command: str) -> int:
    code = BAD_INPUT
    try:
        _drop_unusable_backend()
        with hangups(interrupt=True):
            return main() or 0
    except UserError as error:
        hints = HINTS.get(command, {})
        problem = " ".join([str(error), *(hints[remedy] for remedy in error.remedies if remedy in hints)])
        code = error.exit_code
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        print(f"interrupted{by}.", file=sys.stderr)
        return 128 + number
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            problem = f"there is not enough memory. {MEMORY_HINTS.get(command, SAMPLING_MEMORY_HINT)}"
        elif isinstance(error, OSError) and (error.filename or error.errno in OF_THE_DISK):
            where = f": {error.filename}" if error.filename else ""
            advice = ". Check the free disk space." if error.errno == errno.ENOSPC else ""
            problem = f"{error.strerror}{where}{advice}"
        else:
            raise
    print(f"error: {one_line(problem)}", file=sys.stderr)
    return code


def _drop_unusable_backend() -> None:
    """Remove MPLBACKEND from the environment if matplotlib refuses it here: pictures are files in any case."""
    backend = os.environ.pop("MPLBACKEND", "")
    if not backend or backend.startswith("module://"):  # a backend of a notebook does not work in a program
        return
    import matplotlib  # without the variable: with a wrong one, the import itself fails

    try:
        matplotlib.rcParams["backend"] = backend
        os.environ["MPLBACKEND"] = backend
    except ValueError:
        print(f"warning: MPLBACKEND is '{backend}', which matplotlib does not know; ignored.", file=sys.stderr)
