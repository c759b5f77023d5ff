import pytest
import torch

from nvae.data.images import to_network
from nvae.evaluation.likelihood import evaluate_elbo
from nvae.objective import bound


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_the_average_of_every_images_bound(make_model, pixels):
    model = make_model()
    elbo = evaluate_elbo(model, pixels, batch_size=10)
    from nvae.seeds import seeded

    images = to_network(pixels, "cpu")
    with torch.no_grad():
        terms = bound(model(images, seeded(0, "validation")), images)
    assert elbo.elbo == pytest.approx(terms.elbo.mean().item(), rel=1e-5)
    assert elbo.kl_per_group == pytest.approx(terms.kl.mean(0).tolist(), rel=1e-5)
    assert elbo.elbo == pytest.approx(elbo.log_likelihood - sum(elbo.kl_per_group), rel=1e-5)


def test_a_last_incomplete_batch_counts_by_its_images(make_model, pixels):
    """Noise apart, which only the sampled terms see: the KL of the top group depends on the image alone."""
    model = make_model()
    parts, whole = evaluate_elbo(model, pixels, batch_size=4), evaluate_elbo(model, pixels, batch_size=10)
    assert parts.kl_per_group[0] == pytest.approx(whole.kl_per_group[0], rel=1e-5)


def test_the_model_comes_back_as_it_went(make_model, pixels):
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate_elbo(model, pixels, 4)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
