"""The exceptions that a user is meant to read, and the one that validators raise."""

from __future__ import annotations

from typing import Any, ClassVar


class UserError(Exception):
    """Something outside the program is wrong: a file, a key, an argument.

    The message says what is wrong (got X, expected Y), then what to do. Command-line programs print the message without
    a traceback and exit with `exit_code` (see `cli.errors.run`); a notebook sees an ordinary exception.
    """

    exit_code: ClassVar[int] = 2


class DivergenceError(UserError):
    """A training whose numbers do not allow it to go on from its present state.

    problem, advice: the two parts of the message.
    """

    exit_code = 3

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem, self.advice = problem, advice


class InvalidValueError(ValueError):
    """A value that a validator refuses, alone or together with other keys.

    key: dotted, relative to the section whose validator raises the exception.
    got: the value. allowed: which values are allowed, as a noun phrase.
    """

    def __init__(self, key: str, got: Any, allowed: str) -> None:
        super().__init__(f"{key}: got {got!r}, expected {allowed}")
        self.key, self.got, self.allowed = key, got, allowed


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory was not enough; PyTorch says so in the text of a RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
