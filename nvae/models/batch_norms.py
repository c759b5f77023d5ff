"""Batch norms whose statistics are those of the images of all processes, not of each process alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norms(model: nn.Module) -> None:
    """Convert the batch norms of a model on its device; names, weights and statistics stay the same.

    PyTorch's synchronized batch norm needs a GPU; on a CPU, `SynchronizedBatchNorm2d` computes the same.
    """
    if next(model.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm2d  # which has the same attributes


@contextmanager
def restored_batch_norms(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Restore statistics, counters and momenta of batch norms on exit, also after an error.

    Within the context, assign new tensors to the buffers instead of changing the old ones.
    """
    names = ("running_mean", "running_var", "num_batches_tracked", "momentum")
    saved = [(norm, {name: getattr(norm, name) for name in names}) for norm in norms]
    try:
        yield
    finally:
        for norm, values in saved:
            for name, value in values.items():
                setattr(norm, name, value)


def copy_statistics(norm: _BatchNorm) -> None:
    """Replace the statistics and the counter of a batch norm by copies, so that the old tensors do not change."""
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(norm, name, buffer.clone())


def num_values(norm: nn.Module, x: Tensor) -> int:
    """Return how many numbers per channel the statistics of a batch norm in training are made of, for its input x."""
    count = x.numel() // x.shape[1]
    if isinstance(norm, SynchronizedBatchNorm2d):
        return norm.last_count
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_initialized():
        return count * dist.get_world_size(norm.process_group)  # of equal shares, or nearly
    return count


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with the mean and the variance over the inputs (B, C, H, W) of all processes, in training.

    Every process must call it equally often, also in the backward pass. `last_count` is the number of values per
    channel of the last call in training.
    """

    last_count: int = 0
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        sums = _Sum.apply(torch.cat([values.sum((0, 2, 3)), values.new_tensor([values.numel() / values.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean[:, None, None]
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / count
        self.last_count = int(count)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; the gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total
