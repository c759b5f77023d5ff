"""The exceptions that a user is meant to read, and what the user can do about them."""

from __future__ import annotations

import errno
import os
import re
from enum import Enum
from typing import Any, ClassVar

from nvae.system.texts import one_line


class Remedy(Enum):
    """What the user can do, as data: a program that shows the error adds its own flag or button for each remedy."""

    START_OVER = "start the run over"
    START_OVER_FROM_FILE = "start the run over from a checkpoint"
    RUN_NAME = "give the run another name"
    CHANGED_DATA = "continue with the changed data"
    DATASET_PATH = "set dataset.path"
    CONFIG_KEY = "set another key of the config"
    IMAGE_SIZE = "set a smaller input_dimension"
    MODEL_CONFIG = "name the config of the imported model"


class UserError(Exception):
    """Something outside the program is wrong: a file, a key, an argument.

    The message says what is wrong (got X, expected Y), then what to do; `remedies` are what a front end can offer.
    Command-line programs print the message without a traceback and exit with `exit_code` (see `cli.errors.run`); a
    notebook sees an ordinary exception. The message is one printable line, whatever names and values are in it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *remedies: Remedy) -> None:
        super().__init__(one_line(message))
        self.remedies = remedies

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error with its fields, whatever arguments its class has: ranks tell each other their errors."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class InvalidValueError(UserError, ValueError):
    """A wrong value of an argument or of a config's key, alone or together with others.

    name: of the argument or, dotted, of the key in the section whose validator raises the error. got: the value, or a
    text that describes the value. expected: the values that are allowed, as a noun phrase. advice: what to do, as a
    sentence, where that does not follow.
    """

    def __init__(self, name: str, got: Any, expected: str, advice: str = "", *remedies: Remedy) -> None:
        self.name, self.got, self.expected, self.advice = name, got, expected, advice
        shown = got if isinstance(got, str) else repr(got)
        super().__init__(f"{name}: got {shown}, expected {expected}. {advice}".rstrip(), *remedies)


class DivergenceError(UserError):
    """A training whose numbers do not allow it to go on from its present state.

    problem, advice: the two parts of the message.
    """

    exit_code = 3

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}", Remedy.CONFIG_KEY)
        self.problem, self.advice = problem, advice


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory was not enough; PyTorch says so in the text of a RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or bool(re.search("out of memory|can('t|not) allocate memory", text))


def error_of_system(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an exception is or hides; None if a file's content is at fault.

    zipfile raises an error of its own for an OSError, and torch one whose text ends with the number, such as "(5)".
    EINVAL of an open file is about the content: a damaged file names wrong places in itself.
    """
    hidden: BaseException | None = error
    while hidden is not None:
        if isinstance(hidden, OSError) and (hidden.errno not in (None, errno.EINVAL) or hidden.filename):
            return hidden
        hidden = hidden.__cause__ or hidden.__context__
    number = re.search(r"unable to .*\((\d+)\)$", str(error), re.M)
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
