"""A compiled network in place of the trainer's: the steps have the same numbers."""

import pytest
import torch

from nvae.training.resuming import resume_training, save_training
from nvae.training.trainer import Trainer

from .helpers import LADDER, NVLABS, VDVAE, advance, differences, everything


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(trainer: Trainer, backend: str) -> Trainer:
    trainer.network = torch.compile(trainer.network, backend=backend)
    return trainer


@pytest.mark.parametrize(
    "model", [LADDER, VDVAE, pytest.param(NVLABS, marks=pytest.mark.slow)], ids=["ladder", "vdvae", "nvae"]
)
@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_steps_of_a_compiled_network_are_equal(make_trainer, model, parts):
    """The backend "eager" runs the same operations as the model itself, in the same order."""
    plain = make_trainer(model, gradient_accumulation=parts)
    same = compiled(make_trainer(model, gradient_accumulation=parts), "eager")
    for _ in range(3):
        (expected,), (metrics,) = advance(plain, 1), advance(same, 1)
        assert metrics["loss"].item() == expected["loss"].item()
    assert not differences(everything(plain), everything(same))


@pytest.mark.slow
def test_steps_of_a_network_with_a_compiled_gradient_are_close(make_trainer):
    """The backend "aot_eager" also traces the backward pass, so rounding may differ."""
    plain, same = (make_trainer(NVLABS, gradient_accumulation=2) for _ in range(2))
    compiled(same, "aot_eager")
    for _ in range(3):
        (expected,), (metrics,) = advance(plain, 1), advance(same, 1)
        for key in ("loss", "log_likelihood", "kl_per_group", "gradient_norm"):
            torch.testing.assert_close(metrics[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_checkpoint_of_a_compiled_training_continues_without_the_compiler(make_trainer, tmp_path):
    whole, first, second = (make_trainer(gradient_accumulation=2) for _ in range(3))
    compiled(first, "eager")
    advance(whole, 4)
    advance(first, 2)
    save_training(first, tmp_path / "a.checkpoint")
    assert resume_training(second, tmp_path / "a.checkpoint") == []
    advance(second, 2)
    assert not differences(everything(whole), everything(second))
