"""Import packages that only some data sets need."""

from __future__ import annotations

import importlib
from types import ModuleType

from nvae.system.errors import Remedy, UserError


def import_extra(module: str, name: str, extra: str, advice: str = "", *remedies: Remedy) -> ModuleType:
    """Import a module of an extra for the data set `name`. Raises UserError where the extra is not installed.

    advice: the end of the message's last sentence, on what else to do. remedies: of the error.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{name} needs the extra '{extra}': install it with pip install -e '.[{extra}]'{advice}.", *remedies
        ) from error
