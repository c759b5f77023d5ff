from types import SimpleNamespace

import pytest

from nvae.training.validation import check_health


@pytest.mark.parametrize(
    ("kl", "bits", "warmed_up", "kinds"),
    [
        ([0.5, 0.0], 7.9, True, []),
        ([0.009, 0.0], 7.9, True, ["collapse"]),
        ([0.009, 0.0], 7.9, False, []),
        ([1e5, 3e5], 12.1, True, ["divergence"]),
        ([0.0, 0.0], 12.1, True, ["collapse", "divergence"]),
        ([0.5, 0.0], 11.9, False, []),
    ],
)
def test_useless_models_are_warned_of(make_trainer, kl, bits, warmed_up, kinds):
    trainer = make_trainer(warmup_epochs=1.0)
    trainer.position.epoch = int(warmed_up)
    warned = []
    reporter = SimpleNamespace(warn=lambda text, once: warned.append(once.split()[0]))
    evaluation = SimpleNamespace(kl_per_group=kl, elbo_bits=SimpleNamespace(mean=bits))
    check_health(trainer, SimpleNamespace(reporter=reporter), evaluation, "")
    assert warned == kinds
