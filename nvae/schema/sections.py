"""The base class of every section of a config, and the types of its numbers and texts.

Every number has a bound: larger than any real use, small enough to reject typing errors and hostile files before a
model is built.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from nvae.system.errors import InvalidValueError

MAX_COUNT = 10**9  # images and steps
MAX_RATE = 1e6  # learning rates and other factors: float32 optimizers overflow far above
MAX_SIZE = 4096  # width and height of the images
MAX_SEED = 2**63 - 1  # torch's generators take 64 bits

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[float, Field(ge=0, le=MAX_RATE)]
PositiveRate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Portion = Annotated[float, Field(ge=0, le=1)]
AUTO = "auto"  # in a file: the value that suits the data set
PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]  # no file name holds a zero character


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversions, no NaN or infinity, no changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise InvalidValueError for the value of a dotted key."""
        got = attrgetter(key)(self)
        raise InvalidValueError(key, list(got) if isinstance(got, tuple) else got, expected)
