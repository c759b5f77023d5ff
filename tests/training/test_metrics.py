import pytest

from nvae.training.metrics import health_warnings


@pytest.mark.parametrize(
    ("kl", "bits", "warmed_up", "kinds"),
    [
        ([0.5, 0.0], 7.9, True, set()),
        ([0.009, 0.0], 7.9, True, {"collapse"}),
        ([0.009, 0.0], 7.9, False, set()),
        ([1e5, 3e5], 12.1, True, {"divergence"}),
        ([0.0, 0.0], 12.1, True, {"collapse", "divergence"}),
        ([0.5, 0.0], 11.9, False, set()),
    ],
)
def test_health_warnings(config, kl, bits, warmed_up, kinds):
    assert health_warnings(kl, bits, config, warmed_up).keys() == kinds
