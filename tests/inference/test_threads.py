"""Two samplers of one model in two threads."""

from concurrent.futures import ThreadPoolExecutor

import torch

from nvae.inference.sampling import Sampler


def test_samplers_in_threads_give_their_own_images_and_leave_the_model_as_it_was(make_model):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samplers = [Sampler(model, temperature, iterations=2) for temperature in (0.5, 1.0)]
    expected = [sampler.sample(4) for sampler in samplers]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda i: samplers[i % 2].sample(4), range(40)))
    assert all(torch.equal(batch, expected[i % 2]) for i, batch in enumerate(images))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
