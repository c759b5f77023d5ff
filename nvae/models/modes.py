"""A context manager that puts a model into evaluation mode and restores the modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def eval_mode(model: Model) -> Iterator[Model]:
    """Put a model into evaluation mode; restore the mode of every submodule on exit, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training
