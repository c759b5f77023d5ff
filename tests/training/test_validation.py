import math
from types import SimpleNamespace

import pytest

from nvae.training.validation import check_health, validate


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


def test_validation_counts_the_active_units_of_every_group(make_trainer):
    """A unit whose posterior does not depend on the image is dead."""
    trainer = make_trainer()
    output = SimpleNamespace(reporter=SimpleNamespace(warn=lambda *arguments, **options: None))
    units = [math.prod(group.level.latent_shape) for group in trainer.model.groups]
    counts = []
    for factor in (100, 0):
        for group in trainer.model.groups:
            group.posterior_head.bias.data.zero_()
            group.posterior_head.parametrizations.weight.original0.data.mul_(factor)
        counts.append(validate(trainer, output)["validation_active_units_per_group"])
    assert all(0 < count <= of for count, of in zip(counts[0], units, strict=True))
    assert counts[1] == [0] * len(units)
