"""The evidence lower bound on held-out images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nvae.data.images import to_network
from nvae.model.hierarchy import HierarchicalVAE
from nvae.objective import bound
from nvae.seeds import seeded


class Elbo(NamedTuple):
    """Averages over images, in nats per image."""

    elbo: float
    log_likelihood: float
    kl_per_group: list[float]  # top group first
    bits_per_dimension: float


@torch.no_grad()
def evaluate_elbo(model: HierarchicalVAE, pixels: Tensor, batch_size: int, seed: int = 0) -> Elbo:
    """The ELBO of uint8 pixels (N, C, S, S), one posterior draw each, with the batch-norm statistics of training.

    The draws depend on the seed and on the batch size. Returns with the model in the mode it came in.
    """
    device = model.constant.device
    generator = seeded(seed, "validation")
    training = model.training
    model.eval()
    log_likelihood, kl = 0.0, torch.zeros(len(model.groups))
    for batch in pixels.split(batch_size):
        images = to_network(batch, device)
        terms = bound(model(images, generator), images)
        log_likelihood += terms.log_likelihood.sum().item()
        kl += terms.kl.sum(0).float().cpu()
    model.train(training)
    log_likelihood, kl = log_likelihood / len(pixels), kl / len(pixels)
    elbo = log_likelihood - kl.sum().item()
    bits = model.likelihood.bits_per_dimension(-elbo, pixels[0].numel())
    return Elbo(elbo, log_likelihood, kl.tolist(), bits)
