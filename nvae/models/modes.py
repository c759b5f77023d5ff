"""Context managers that change a model and restore it. While one is active, other threads wait for the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

# Not an attribute of the model: a lock can be neither copied nor saved.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_CREATION = threading.Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Keep other threads out of contexts of the same model; the same thread may enter again."""
    with _CREATION:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def eval_mode(model: Model) -> Iterator[Model]:
    """Put a model into evaluation mode; restore the mode of every submodule on exit, also after an error."""
    with exclusive(model):
        modes = [(module, module.training) for module in model.modules()]
        try:
            yield model.eval()
        finally:
            for module, training in modes:
                module.training = training
