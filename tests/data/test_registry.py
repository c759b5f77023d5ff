from typing import get_args

from nvae.config import DatasetName
from nvae.data.registry import LOADERS


def test_every_name_that_a_config_may_give_has_a_loader():
    assert set(get_args(DatasetName)) == set(LOADERS)
