import torch

from nvae.sampling.samples import noise_of, reconstruct, sample


def test_one_seed_is_one_image_whatever_the_others_are(make_model):
    model = make_model()
    together = sample(model, [5, 6, 7], 0.7)
    alone = sample(model, [6], 0.7)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_many_seeds_come_in_passes(make_model):
    model = make_model()
    images = sample(model, range(40), 0.7)
    assert images.shape == (40, 3, 8, 8)
    torch.testing.assert_close(images[37], sample(model, [37], 0.7)[0], rtol=0, atol=1e-6)


def test_images_are_on_the_unit_interval(make_model):
    images = sample(make_model(), range(9), 5.0)
    assert images.min() >= 0
    assert images.max() <= 1


def test_noise_is_standard_normal(make_model):
    noise = torch.cat([group.flatten() for group in noise_of(make_model(), range(400))])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_reconstructions_need_no_luck(make_model):
    model = make_model()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reconstruct(model, images), reconstruct(model, images))
