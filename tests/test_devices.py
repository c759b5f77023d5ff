import pytest
import torch

from nvae.devices import available_devices, choose_device, set_fast_defaults
from nvae.errors import UserError


def test_the_fastest_device_is_chosen_alone():
    assert str(choose_device()) == available_devices()[0]
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:3"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    with pytest.raises(UserError, match=r"there is no device .* can be .*cpu"):
        choose_device(name)


def test_settings_for_speed_change_no_number():
    before = torch.randn(500, 500, generator=torch.Generator().manual_seed(0)) @ torch.ones(500, 500)
    set_fast_defaults()
    after = torch.randn(500, 500, generator=torch.Generator().manual_seed(0)) @ torch.ones(500, 500)
    assert torch.equal(before, after)
