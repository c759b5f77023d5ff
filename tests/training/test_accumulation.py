import math

import pytest
import torch

from nvae.config import ConfigError
from nvae.data.images import Data
from nvae.summary import training_bytes
from nvae.system.errors import UserError
from nvae.training.trainer import Trainer

from .helpers import LADDER, NVLABS, TOY_FACES, advance, differences, everything, gradient_norm


def gradients(trainer):
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradient_is_that_of_the_whole_batch(make_trainer, parts):
    changes = {"dataset": TOY_FACES | {"binarize": True, "horizontal_flip": True}, "sampling_method": "bernoulli"}
    whole, split = make_trainer(LADDER | changes), make_trainer(LADDER | changes, gradient_accumulation=parts)
    assert split.position.part_sizes == [4 // parts] * parts
    for _ in range(3):
        (expected,), (metrics,) = advance(whole, 1), advance(split, 1)
        norm = gradient_norm(whole)
        for name, gradient in gradients(split).items():
            assert (gradient - gradients(whole)[name]).norm() <= 1e-5 * norm, name
        for key in ("loss", "log_likelihood", "kl_per_group", "gradient_norm"):
            torch.testing.assert_close(metrics[key], expected[key], rtol=1e-5, atol=1e-5)
        split.model.load_state_dict(whole.model.state_dict())


def test_accumulation_of_a_small_data_set_takes_nearly_equal_parts(make_config, data):
    schedule = {"batch_size": 12, "learning_rate": 0.01, "epochs": 3}
    few = Data(data.training[:5], data.validation)
    whole, split = (
        Trainer(make_config(**LADDER, training_parameters=schedule | change), few, torch.device("cpu"))
        for change in ({}, {"gradient_accumulation": 3})
    )
    assert split.position.part_sizes == [2, 2, 1]
    (expected,), (metrics,) = advance(whole, 1), advance(split, 1)
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert gradient_norm(split) == pytest.approx(gradient_norm(whole), rel=1e-5)
    many = schedule | {"gradient_accumulation": 12}
    assert (
        Trainer(make_config(**LADDER, training_parameters=many), few, torch.device("cpu")).position.part_sizes
        == [1] * 5
    )


def test_accumulation_regularizes_once_per_step(make_trainer):
    model = NVLABS | {"arch_instance": "res_elu"}  # without batch norms
    whole, split = (
        make_trainer(model, kl_balancing=False),
        make_trainer(model, kl_balancing=False, gradient_accumulation=2),
    )
    (expected,), (metrics,) = advance(whole, 1), advance(split, 1)
    assert metrics["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert gradient_norm(split) == pytest.approx(gradient_norm(whole), rel=1e-4)
    for name, tensor in whole.regularizers.state_dict().items():
        assert torch.equal(tensor, split.regularizers.state_dict()[name]), name


def test_accumulation_skip_restores_the_buffers_of_all_parts(make_trainer):
    trainer = make_trainer(NVLABS, gradient_accumulation=2, gradient_skip_threshold=1e-9, ema_decay=0.5)
    before = everything(trainer)
    assert advance(trainer, 1)[0]["skipped"]
    assert differences(before, everything(trainer)) <= {f".progress.{key}" for key in vars(trainer.position)} | {
        ".recovery.excess_skips"
    }


def test_accumulation_must_divide_the_batch(make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(gradient_accumulation=3)
    assert error.value.key == "training_parameters.gradient_accumulation"


def test_accumulation_refuses_one_value_per_channel(make_config, data):
    config = make_config(input_dimension=4, training_parameters={"batch_size": 4, "gradient_accumulation": 4})
    with pytest.raises(UserError, match="gradient_accumulation"):
        Trainer(config, data, torch.device("cpu"))


def test_training_bytes_of_an_ema(make_config):
    plain = training_bytes(make_config(), 2)
    assert training_bytes(make_config(training_parameters={"ema_decay": 0.5}), 2) > plain


@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_loss_in_bits_per_dimension_scales_the_elbo_but_not_the_regularization(make_trainer, regularization):
    changes = {"regularization_constant": regularization}
    bits, nats, none = (
        make_trainer(loss_scale="bits_per_dimension", **changes),
        make_trainer(**changes),
        make_trainer(regularization_constant=0.0),
    )
    scale = math.log(2) * 3 * 8 * 8
    (scaled,), (plain,), (without,) = advance(bits, 1), advance(nats, 1), advance(none, 1)
    expected = without["loss"] / scale + (plain["loss"] - without["loss"])
    torch.testing.assert_close(scaled["loss"], expected, rtol=1e-4, atol=1e-4)
    assert scaled["log_likelihood"].item() == plain["log_likelihood"].item()
    if not regularization:
        assert scaled["gradient_norm"].item() == pytest.approx(plain["gradient_norm"].item() / scale, rel=1e-4)


def test_clipping_is_in_the_unit_of_the_loss(make_trainer):
    bits = {"loss_scale": "bits_per_dimension", "regularization_constant": 0.0}
    (metrics,) = advance(make_trainer(**bits), 1)
    norm = metrics["gradient_norm"].item()
    clipped, free = make_trainer(gradient_clipping=norm / 2, **bits), make_trainer(gradient_clipping=norm * 2, **bits)
    advance(clipped, 1)
    advance(free, 1)
    assert gradient_norm(clipped) == pytest.approx(norm / 2, rel=1e-3)
    assert gradient_norm(free) == pytest.approx(norm, rel=1e-3)
    assert advance(make_trainer(gradient_skip_threshold=0.9 * norm, **bits), 1)[0]["skipped"]
