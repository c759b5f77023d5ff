import pytest

from nvae.config import config_from_dict, load_config
from nvae.models.families import build_model
from nvae.optim import OPTIMIZERS, num_moments
from nvae.summary import cost_per_image, group_table, num_parameters, summary, training_bytes


def test_summary_has_levels_parts_and_costs():
    page = summary(load_config("big_logistic_mixture20latentnoflows"))
    assert "18,584,772" in page
    assert "20 x 8 x 8" in page
    assert "61,440" in page  # 3 groups x 20 x 32 x 32
    assert "GFLOP per image" in page


@pytest.mark.slow
def test_levels_of_one_resolution_share_a_row_of_a_table():
    """A decoder may come back to a resolution; the rows of the levels still add up to that of all."""
    blocks = {"enc_blocks": "8x1,8d2,4d4,1", "dec_blocks": "1,4m1,8m4,4x2,8m4", "width": 4}
    model = build_model(config_from_dict({"family": "vdvae", "input_dimension": 8} | blocks, "test"))
    lines = group_table(model, ["groups"], lambda indices: [str(len(indices))])
    assert [line.split()[-1] for line in lines[1:]] == ["1"] * 6 + ["1", "3", "2", "6"]
    assert lines[8].startswith("4x4, 3 groups")


def test_operations_of_a_published_config():
    """6.65 GFLOP in the original's order of layers; ours upsamples later, which saves a few percent."""
    operations = cost_per_image(load_config("big_logistic_mixture20latentnoflows")).operations / 1e9
    assert 6.0 < operations < 6.65


@pytest.mark.slow
def test_operations_grow_with_the_number_of_pixels(make_config):
    small, large = (cost_per_image(make_config(input_dimension=size)).operations for size in (16, 32))
    assert large / small == pytest.approx(4, rel=0.01)


@pytest.mark.slow
def test_activation_checkpointing_keeps_less(make_config):
    parameters = {"use_tensor_checkpoints": True}
    plain, recomputing = cost_per_image(make_config()), cost_per_image(make_config(training_parameters=parameters))
    assert recomputing.saved_bytes < 0.7 * plain.saved_bytes
    assert recomputing.operations == plain.operations


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "30 epochs"),
        ({"warmup_epochs": 2.5}, "2.5 epochs"),
        ({"warmup_steps": 12_000}, "12,000 steps"),
        ({"warmup_portion": 0.3}, "30%"),
    ],
    ids=str,
)
def test_summary_has_the_kl_warmup_of_the_config(make_config, changes, expected):
    assert expected in summary(make_config(training_parameters=changes))


@pytest.mark.slow
def test_summary_of_a_padded_network(make_config):
    page = summary(load_config("nvae_mnist_small"))
    assert "padded by 2" in page
    assert "10 x 8 x 8" in page  # 32 pixels downsampled twice: the padding counts
    assert "padded" not in summary(make_config())


@pytest.mark.slow
def test_cost_includes_the_padding(make_config):
    padded = cost_per_image(make_config(input_dimension=12, padding=2))
    assert padded.operations == cost_per_image(make_config(input_dimension=16)).operations


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_bytes_are_activations_weights_gradients_and_moments(make_config, optimizer):
    config = make_config(training_parameters={"optimizer": optimizer})
    parameters, cost = num_parameters(build_model(config)), cost_per_image(config)
    tensors = 2 + num_moments(config.training_parameters)
    assert training_bytes(config, 8) == 8 * cost.saved_bytes + cost.fixed_bytes + 4 * tensors * parameters


@pytest.mark.parametrize("family", [{"family": "ladder"}, {"family": "dvp", "context_size": 4}], ids=str)
def test_pseudo_inputs_of_a_vampprior_are_a_cost_per_batch(family):
    keys = family | {"input_dimension": 8, "latents_per_scale": [1], "channels": 4}

    def cost(**changes):
        return cost_per_image(config_from_dict(keys | changes, "the test"))

    plain = cost(top_prior="standard")
    few, many = (cost(top_prior="vampprior", prior_components=count) for count in (10, 500))
    assert plain.fixed_operations == 0
    assert many.fixed_operations == 50 * few.fixed_operations > 0
    assert many.fixed_bytes > 30 * few.fixed_bytes
    assert few.operations == many.operations == plain.operations
