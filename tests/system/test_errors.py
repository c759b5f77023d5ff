import errno
import os
import pickle

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from nvae.config.errors import ConfigError
from nvae.system.errors import DivergenceError, InvalidValueError, Remedy, UserError
from nvae.system.files import WriteError
from nvae.system.torch_files import CheckpointError


def test_invalid_value_has_fields_and_one_sentence_each_for_problem_and_advice():
    error = InvalidValueError("images", 3, "4 or more", "Give more images.", Remedy.DATASET_PATH)
    assert (error.name, error.got, error.expected) == ("images", 3, "4 or more")
    assert error.remedies == (Remedy.DATASET_PATH,)
    assert str(error) == "images: got 3, expected 4 or more. Give more images."
    assert str(InvalidValueError("images", "shape (3,)", "shape (N, C)")).endswith(
        "got shape (3,), expected shape (N, C)."
    )


def test_invalid_value_is_for_functions_and_for_validators():
    class Section(BaseModel):
        key: int

        @field_validator("key")
        @classmethod
        def check(cls, value):
            raise InvalidValueError("key", value, "another number")

    with pytest.raises(ValidationError) as raised:
        Section(key=3)
    assert raised.value.errors()[0]["ctx"]["error"].expected == "another number"
    assert issubclass(InvalidValueError, UserError)


@pytest.mark.parametrize(
    "error",
    [
        UserError("gone", Remedy.START_OVER, Remedy.CHANGED_DATA),
        CheckpointError("damaged", Remedy.START_OVER_FROM_FILE),
        InvalidValueError("images", [3], "4 or more"),
        DivergenceError("the loss is not finite.", "Set a lower rate."),
        WriteError("a.checkpoint", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
        ConfigError("invalid_value", key="latent_size", got=0, allowed="1 or more"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_fields_on_the_way_to_another_rank(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
