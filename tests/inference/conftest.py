from collections.abc import Callable

import pytest
import torch


def assert_within(one, other, atol=1e-6):
    """Assert that two tensors differ by at most `atol` anywhere."""
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.fixture(scope="session", name="assert_within")
def assert_within_fixture() -> Callable[..., None]:
    return assert_within


@pytest.fixture(scope="module")
def bernoulli_model(make_model):
    """A tiny model whose mean images are never clamped."""
    return make_model(sampling_method="bernoulli")


@pytest.fixture
def passes(monkeypatch):
    """A function that returns a list, to which all later top-down passes of a model append their outputs."""

    def spy(model):
        outputs, top_down = [], type(model).top_down

        def recorded(*args, **options):
            outputs.append(top_down(*args, **options))
            return outputs[-1]

        monkeypatch.setattr(type(model), "top_down", recorded)  # of the class, so also of copies for inference
        return outputs

    return spy
