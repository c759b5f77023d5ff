import pytest

from nvae.config import load_config
from nvae.summary import cost_per_image, summary


def test_the_page_holds_levels_parts_and_costs():
    page = summary(load_config("big_logistic_mixture20latentnoflows"))
    assert "18,584,772" in page
    assert "20 x 8 x 8" in page
    assert "61,440" in page  # 3 groups x 20 x 32 x 32
    assert "GFLOP per image" in page


def test_operations_of_a_known_config():
    """6.65 GFLOP in the original's order of layers; ours doubles later, which saves some per cent of them."""
    operations = cost_per_image(load_config("big_logistic_mixture20latentnoflows")).operations / 1e9
    assert 6.0 < operations < 6.65


def test_operations_grow_with_the_number_of_pixels(make_config):
    small, large = (cost_per_image(make_config(input_dimension=size)).operations for size in (16, 32))
    assert large / small == pytest.approx(4, rel=0.01)


def test_activation_checkpointing_keeps_less(make_config):
    parameters = {"use_tensor_checkpoints": True}
    plain, recomputing = cost_per_image(make_config()), cost_per_image(make_config(training_parameters=parameters))
    assert recomputing.saved_bytes < 0.7 * plain.saved_bytes
    assert recomputing.operations == plain.operations


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "KL warm-up 30 epochs"),
        ({"warmup_epochs": 2.5}, "KL warm-up 2.5 epochs"),
        ({"warmup_steps": 12_000}, "KL warm-up 12,000 steps"),
        ({"warmup_portion": 0.3}, "KL warm-up 30% of them"),
    ],
    ids=str,
)
def test_the_page_tells_the_kls_warm_up_as_the_config_does(make_config, changes, expected):
    assert expected in summary(make_config(training_parameters=changes))


def test_the_page_of_a_padded_network(make_config):
    page = summary(load_config("nvae_mnist_small"))
    assert "nvae, 1 x 28 x 28 images from mnist padded by 2, likelihood bernoulli" in page
    assert "10 x 8 x 8" in page  # 32 pixels halved twice: the margin counts
    assert "padded" not in summary(make_config())


def test_a_margin_costs_what_its_pixels_cost(make_config):
    """The network's work on 12 pixels and a margin of 2 is that on 16."""
    padded = cost_per_image(make_config(input_dimension=12, padding=2))
    assert padded.operations == cost_per_image(make_config(input_dimension=16)).operations
