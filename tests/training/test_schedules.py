import math

import pytest
import torch

from nvae.schema import TrainingParameters
from nvae.training.schedules import Validation, beta_nll, kl_warmup, learning_rate, plateau_reductions

from .helpers import at

SCHEDULE = TrainingParameters(
    learning_rate=0.01, learning_rate_min=0.001, learning_rate_warmup_epochs=2.0, warmup_epochs=10.0, epochs=30
)


def test_learning_rate_rises_linearly_above_zero():
    assert learning_rate(at(1.0, SCHEDULE, 100)) == pytest.approx(0.005)
    assert learning_rate(at(0.5, SCHEDULE, 100)) == pytest.approx(0.0025)
    assert learning_rate(at(0.0, SCHEDULE, 100)) > 0


def test_learning_rate_warmup_in_steps_rises_from_zero_and_replaces_the_epochs():
    schedule = SCHEDULE.model_copy(update={"learning_rate_warmup_steps": 50, "learning_rate_decay": "after_its_warmup"})
    for step in (0, 1, 25, 49, 50):
        assert learning_rate(at(step / 100, schedule, 100)) == pytest.approx(0.01 * step / 50)
    in_epochs = SCHEDULE.model_copy(
        update={"learning_rate_warmup_epochs": 0.5, "learning_rate_decay": "after_its_warmup"}
    )
    for epoch in (0.6, 1.0, 17.3, 29.99):
        assert learning_rate(at(epoch, schedule, 100)) == learning_rate(at(epoch, in_epochs, 100))
    per_epoch = schedule.model_copy(update={"learning_rate_update": "epoch"})
    assert learning_rate(at(0.25, per_epoch, 100)) == pytest.approx(0.005)
    assert learning_rate(at(0.75, per_epoch, 100)) == 0.01
    without = SCHEDULE.model_copy(update={"learning_rate_warmup_steps": 0})
    assert learning_rate(at(0.0, without, 100)) == 0.01


def test_plateaus_count_from_the_end_of_a_warmup_in_steps():
    history = [Validation(epoch + 1.0, -epoch) for epoch in range(6)]
    schedule = plateau(learning_rate_warmup_steps=400)
    assert learning_rate(at(5.0, schedule, 100), history[:5]) == 0.01
    assert learning_rate(at(6.0, schedule, 100), history[:6]) == 0.005


def test_learning_rate_is_constant_during_the_kl_warmup():
    assert {learning_rate(at(epoch, SCHEDULE, 100)) for epoch in (2.0, 5.5, 10.0)} == {0.01}


def test_learning_rate_cosine_reaches_the_minimum():
    assert learning_rate(at(20.0, SCHEDULE, 100)) == pytest.approx((0.01 + 0.001) / 2)
    assert learning_rate(at(15.0, SCHEDULE, 100)) == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(at(30.0, SCHEDULE, 100)) == pytest.approx(0.001)
    assert learning_rate(at(31.0, SCHEDULE, 100)) == pytest.approx(0.001)


def test_learning_rate_is_constant_if_the_warmup_exceeds_the_training():
    short = SCHEDULE.model_copy(update={"epochs": 5})
    assert learning_rate(at(4.9, short, 100)) == 0.01
    assert learning_rate(at(5.0, short, 100)) == 0.01


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_epochs": 12.0}, (0, 12)),
        ({"warmup_epochs": 12.0, "warmup_delay_portion": 0.1}, (3, 12)),
        ({"warmup_steps": 250}, (0, 2.5)),
        ({"warmup_steps": 0}, (0, 0)),
        ({"warmup_steps": 250, "warmup_delay_portion": 0.1}, (3, 2.5)),
        ({"warmup_portion": 0.3}, (0, 9)),
        ({"warmup_portion": 0.0}, (0, 0)),
        ({"warmup_portion": 1.0, "warmup_delay_portion": 1e-4}, (0.003, 30)),
    ],
    ids=str,
)
def test_kl_warmup_in_epochs_in_steps_or_as_a_portion(changes, expected):
    """Of 30 epochs of 100 steps each; the delay is a portion always."""
    warmup = kl_warmup(at(0, TrainingParameters(epochs=30, **changes), 100))
    assert (warmup.delay, warmup.rise) == pytest.approx(expected)


def test_kl_warmup_in_steps_takes_more_epochs_of_fewer_steps():
    schedule = TrainingParameters(epochs=30, warmup_steps=250)
    assert [kl_warmup(at(0, schedule, steps)).rise for steps in (1, 10, 500)] == [250, 25, 0.5]


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_epochs": 10.0},
        {"warmup_steps": 1000, "warmup_epochs": 99.0},
        {"warmup_portion": 1 / 3, "warmup_epochs": 99.0},
        {"warmup_portion": 0.3, "warmup_delay_portion": 1 / 30},
    ],
    ids=str,
)
def test_learning_rate_falls_after_any_kind_of_kl_warmup(changes):
    schedule = SCHEDULE.model_copy(update=changes)
    assert {learning_rate(at(epoch, schedule, 100)) for epoch in (2.0, 5.5, 9.99)} == {0.01}
    assert learning_rate(at(20.0, schedule, 100)) == pytest.approx((0.01 + 0.001) / 2)


def test_learning_rate_falls_after_its_own_warmup():
    schedule = SCHEDULE.model_copy(update={"learning_rate_decay": "after_its_warmup"})
    assert learning_rate(at(1.0, schedule, 100)) == pytest.approx(0.005)
    assert learning_rate(at(2.0, schedule, 100)) == 0.01
    for epoch in (2.5, 9.0, 16.0, 29.0):
        expected = 0.001 + 0.009 * (1 + math.cos(math.pi * (epoch - 2) / 28)) / 2
        assert learning_rate(at(epoch, schedule, 100)) == pytest.approx(expected)
    assert learning_rate(at(30.0, schedule, 100)) == pytest.approx(0.001)
    without_rise = schedule.model_copy(update={"learning_rate_warmup_epochs": 0.0})
    assert learning_rate(at(0.0, without_rise, 100)) == 0.01
    assert learning_rate(at(15.0, without_rise, 100)) == pytest.approx((0.01 + 0.001) / 2)


def test_learning_rate_rise_may_exceed_the_kl_warmup():
    schedule = SCHEDULE.model_copy(update={"learning_rate_warmup_epochs": 14.0})
    assert learning_rate(at(12.0, schedule, 100)) == pytest.approx(0.01 * 12 / 14)
    assert learning_rate(at(14.0, schedule, 100)) == 0.01
    assert learning_rate(at(22.0, schedule, 100)) == pytest.approx((0.01 + 0.001) / 2)


@pytest.mark.parametrize("decay", ["after_kl_warmup", "after_its_warmup"])
def test_learning_rate_is_continuous(decay):
    schedule = SCHEDULE.model_copy(update={"learning_rate_decay": decay})
    rates = [learning_rate(at(step / 100, schedule, 100)) for step in range(1, 3100)]
    assert max(abs(b - a) for a, b in zip(rates, rates[1:], strict=False)) < 1e-4


# ----------------------------------------------------------------------------------- the original NVAE, and repetitions


@pytest.mark.parametrize(("epochs", "warmup"), [(400, 5), (45, 1), (90, 5), (7, 0), (6, 5), (5, 5), (3, 5)])
def test_learning_rate_nvlabs_is_that_of_the_original_program(epochs, warmup):
    """PyTorch's scheduler, stepped as the program does: before each epoch beyond the first after the warm-up."""
    steps, highest, lowest = 4, 8e-3, 1e-4
    schedule = TrainingParameters(
        epochs=epochs,
        learning_rate=highest,
        learning_rate_min=lowest,
        learning_rate_warmup_epochs=float(warmup),
        learning_rate_decay="nvlabs",
    )
    optimizer = torch.optim.Adamax([torch.nn.Parameter(torch.zeros(1))], highest)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs - warmup - 1), lowest)
    (group,), step, expected, actual = optimizer.param_groups, 0, [], []
    for epoch in range(epochs):
        if epoch > warmup:
            optimizer.step()
            scheduler.step()
        for i in range(steps):
            if step < warmup * steps:
                group["lr"] = highest * step / (warmup * steps)
            expected.append(group["lr"])
            actual.append(learning_rate(at(epoch + i / steps, schedule, steps)))
            step += 1
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert actual[0] == (0 if warmup else highest)
    if epochs > warmup + 2:
        assert actual[-steps:] == pytest.approx([lowest] * steps)
        assert min(actual[warmup * steps : -steps]) > lowest * (1 + 1e-6)


@pytest.mark.parametrize("epochs", [400, 45])
def test_learning_rate_nvlabs_per_epoch_with_many_steps(epochs):
    """The table of the rates per epoch; a warm-up of many steps ends at the highest rate."""
    warmup = 5 if epochs == 400 else 1
    schedule = TrainingParameters(
        epochs=epochs, learning_rate_min=1e-4, learning_rate_warmup_epochs=warmup * 1.0, learning_rate_decay="nvlabs"
    )
    for epoch in range(warmup, epochs):
        expected = 1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup - 1))) / 2
        rates = {learning_rate(at(epoch + part, schedule, 10**6)) for part in (0.0, 0.5, 0.999)}
        assert len(rates) == 1
        assert rates.pop() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("factor", [1, 3])
def test_learning_rate_cosine_restarts_is_that_of_pytorch(factor):
    schedule = TrainingParameters(
        epochs=60,
        learning_rate_min=1e-3,
        learning_rate_schedule="cosine_restarts",
        learning_rate_period=4.0,
        learning_rate_period_factor=factor,
        learning_rate_decay="after_its_warmup",
        learning_rate_warmup_epochs=2.0,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4, factor, 1e-3)
    for epoch in range(58):
        for part in (0.0, 0.25, 0.9):
            scheduler.step(epoch + part)
            (expected,) = scheduler.get_last_lr()
            assert learning_rate(at(2 + epoch + part, schedule, 100)) == pytest.approx(expected)
    assert learning_rate(at(1.0, schedule, 100)) == pytest.approx(5e-3)
    from_start = schedule.model_copy(update={"learning_rate_decay": "from_start"})
    scheduler.step(7.0)
    assert learning_rate(at(7.0, from_start, 100)) == pytest.approx(scheduler.get_last_lr()[0])


def test_learning_rate_cyclic_is_that_of_pytorch_from_its_top():
    schedule = TrainingParameters(
        epochs=60,
        learning_rate_min=1e-3,
        learning_rate_schedule="cyclic",
        learning_rate_period=8.0,
        learning_rate_decay="after_its_warmup",
        learning_rate_warmup_epochs=4.0,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-2)
    cycle = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, step_size_up=4, cycle_momentum=False)
    rates = []
    for _ in range(60):
        rates.append(cycle.get_last_lr()[0])
        optimizer.step()
        cycle.step()
    assert [learning_rate(at(epoch, schedule, 100)) for epoch in range(4, 60)] == pytest.approx(rates[4:])
    per_epoch = schedule.model_copy(update={"learning_rate_update": "epoch"})
    assert learning_rate(at(10.9, per_epoch, 100)) == learning_rate(at(10.0, per_epoch, 100))


@pytest.mark.parametrize("most", [1, 2, 3, 99])
def test_max_steps_per_epoch_ends_an_epoch(make_trainer, most):
    """Of three batches; every epoch has an order of its own, so that all images are seen in time."""
    trainer, seen = make_trainer(max_steps_per_epoch=most, epochs=30), []
    assert trainer.position.steps_per_epoch == min(most, 3)
    for epoch in range(30):
        order, batches = trainer.order(), list(trainer.batches())
        assert len(batches) == min(most, 3)
        seen += order[: len(batches) * 4].tolist()
        for batch in batches:
            trainer.position.advance(len(batch), False)
        assert (trainer.position.epoch, trainer.position.image) == (epoch + 1, 0)
    assert set(seen) == set(range(14))


# ------------------------------------------------------------------------------------- per epoch, from_start, plateau

PER_EPOCH = SCHEDULE.model_copy(
    update={
        "learning_rate_update": "epoch",
        "learning_rate_decay": "after_its_warmup",
        "learning_rate_warmup_epochs": 4.0,
    }
)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
def test_learning_rate_per_epoch_is_constant_inside_an_epoch(schedule):
    per_epoch = PER_EPOCH.model_copy(update={"learning_rate_schedule": schedule, "plateau_patience": 3})
    history = [Validation(epoch + 0.5, -1.0) for epoch in range(30)]
    for epoch in range(30):
        assert len({learning_rate(at(epoch + part, per_epoch, 100), history) for part in (0.0, 0.3, 0.7, 0.99)}) == 1


def test_learning_rate_per_epoch_rises_to_the_highest_in_the_last_epoch_of_the_warmup():
    rates = [learning_rate(at(epoch, PER_EPOCH, 100)) for epoch in range(5)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4] == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi / 27)) / 2)  # the cosine starts at epoch 3
    fraction = PER_EPOCH.model_copy(update={"learning_rate_warmup_epochs": 2.5})
    assert [learning_rate(at(epoch, fraction, 100)) for epoch in range(3)] == pytest.approx([0.004, 0.008, 0.01])


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_learning_rate_from_start_per_epoch_is_the_published_schedule(warmup):
    """Linear warm-up, then the cosine of all epochs; the factor makes the two meet."""
    schedule = PER_EPOCH.model_copy(
        update={"learning_rate_decay": "from_start", "learning_rate_warmup_epochs": float(warmup)}
    )
    start = max(warmup - 1, 0)
    for epoch in range(30):
        expected = 0.01 * (epoch + 1) / max(warmup, 1)
        if epoch >= warmup:
            cosine = (1 + math.cos(math.pi * epoch / 30)) / (1 + math.cos(math.pi * start / 30))
            expected = 0.001 + 0.009 * cosine
        assert learning_rate(at(epoch, schedule, 100)) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_from_start_per_step_is_continuous_and_reaches_the_minimum():
    schedule = SCHEDULE.model_copy(update={"learning_rate_decay": "from_start"})
    assert learning_rate(at(2.0, schedule, 100)) == 0.01
    expected = 0.001 + 0.009 * 1.0 / (1 + math.cos(math.pi * 2 / 30))
    assert learning_rate(at(15.0, schedule, 100)) == pytest.approx(expected)
    assert learning_rate(at(30.0, schedule, 100)) == pytest.approx(0.001)
    rates = [learning_rate(at(step / 100, schedule, 100)) for step in range(1, 3100)]
    assert max(abs(b - a) for a, b in zip(rates, rates[1:], strict=False)) < 1e-4
    too_long = schedule.model_copy(update={"learning_rate_warmup_epochs": 30.0})
    assert learning_rate(at(30.0, too_long, 100)) == 0.01
    assert learning_rate(at(31.0, too_long, 100)) == pytest.approx(0.001)


def test_learning_rate_constant_stays_after_the_warmup():
    schedule = SCHEDULE.model_copy(update={"learning_rate_schedule": "constant"})
    assert learning_rate(at(1.0, schedule, 100)) == pytest.approx(0.005)
    assert {learning_rate(at(epoch, schedule, 100)) for epoch in (2.0, 11.0, 29.9, 35.0)} == {0.01}


def plateau(**changes):
    update = {"learning_rate_schedule": "plateau", "learning_rate_warmup_epochs": 0.0, "plateau_patience": 2}
    return SCHEDULE.model_copy(update=update | changes)


@pytest.mark.parametrize(
    ("elbos", "reductions"),
    [
        ([], 0),
        ([1, 2, 3, 4], 0),
        ([1, 0], 0),
        ([1, 0, 0], 1),
        ([1, 0, 0, 0], 1),
        ([1, 0, 0, 0, 0], 2),
        ([1, 0, 2, 0, 2], 1),
        ([1, 0, 0, 2, 0, 0], 2),
        ([1, 1, 1], 1),
    ],
)
def test_plateau_reductions_count_from_the_best_or_the_last_reduction(elbos, reductions):
    history = [Validation(epoch + 1.0, elbo) for epoch, elbo in enumerate(elbos)]
    assert plateau_reductions(history, plateau(), warmup=0.0) == reductions
    rate = learning_rate(at(20.0, plateau(plateau_factor=0.5), 100), history)
    assert rate == pytest.approx(0.01 * 0.5**reductions)


def test_plateau_counts_from_the_end_of_the_warmup_and_ends_at_the_minimum():
    history = [Validation(epoch + 1.0, -epoch) for epoch in range(30)]
    assert plateau_reductions(history[:5], plateau(), warmup=4.0) == 0
    assert plateau_reductions(history[:6], plateau(), warmup=4.0) == 1
    assert learning_rate(at(30.0, plateau(), 100), history) == 0.001
    assert learning_rate(at(4.0, plateau(), 100), history) == 0.005  # later validations do not count


@pytest.mark.parametrize(("epoch", "expected"), [(0.0, 0.8), (15.0, 0.4), (30.0, 0.0), (31.0, 0.0)])
def test_beta_of_the_pixels_falls_linearly_to_zero(epoch, expected):
    assert beta_nll(at(epoch, SCHEDULE.model_copy(update={"beta_nll": 0.8}), 100)) == pytest.approx(expected)
    assert beta_nll(at(epoch, SCHEDULE, 100)) == 0
