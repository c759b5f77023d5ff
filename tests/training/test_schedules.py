import math

import pytest

from nvae.config import TrainingParameters
from nvae.training.schedules import learning_rate

SCHEDULE = TrainingParameters(
    learning_rate=0.01, learning_rate_min=0.001, learning_rate_warmup_epochs=2.0, warmup_epochs=10.0, epochs=30
)


def test_the_learning_rate_rises_linearly_and_never_is_zero():
    assert learning_rate(1.0, SCHEDULE) == pytest.approx(0.005)
    assert learning_rate(0.5, SCHEDULE) == pytest.approx(0.0025)
    assert learning_rate(0.0, SCHEDULE) > 0


def test_it_stays_while_the_kl_warms_up():
    assert {learning_rate(epoch, SCHEDULE) for epoch in (2.0, 5.5, 10.0)} == {0.01}


def test_then_it_follows_a_cosine_to_the_minimum():
    assert learning_rate(20.0, SCHEDULE) == pytest.approx((0.01 + 0.001) / 2)
    assert learning_rate(15.0, SCHEDULE) == pytest.approx(0.001 + 0.009 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(30.0, SCHEDULE) == pytest.approx(0.001)
    assert learning_rate(31.0, SCHEDULE) == pytest.approx(0.001)


def test_a_warm_up_longer_than_the_training_keeps_the_rate():
    short = SCHEDULE.model_copy(update={"epochs": 5})
    assert learning_rate(4.9, short) == 0.01
    assert learning_rate(5.0, short) == 0.01
