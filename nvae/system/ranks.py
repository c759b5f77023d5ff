"""The processes of one training, its ranks: their shares of the images, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nvae.system.devices import choose_device
from nvae.system.errors import InvalidValueError, UserError
from nvae.system.signals import ending_at_once

# Minutes of one message: the others wait while the first rank saves and draws. A process that ends is noticed at once.
TIMEOUT, MAX_TIMEOUT = 30, 100_000
CONNECTION_WORDS = ("connection", "gloo", "nccl", "socket", "timed out")
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}  # NCCL for the tensors of GPUs, gloo for all others

_Value = TypeVar("_Value")


class Ranks:
    """The ranks of a training: `count` processes, of which this one has the number `index`, from 0 on.

    The methods below are collective: every rank calls each of them in the same order.
    """

    def __init__(self, index: int = 0, count: int = 1, local_index: int = 0) -> None:
        self.index, self.count, self.local_index = index, count, local_index

    @property
    def is_first(self) -> bool:
        """Whether this rank writes, logs and draws."""
        return self.index == 0

    def share(self, start: int, stop: int) -> slice:
        """Return which of the images from `start` to `stop` are this rank's: equal shares, or nearly."""
        images = stop - start
        return slice(start + images * self.index // self.count, start + images * (self.index + 1) // self.count)

    @property
    def own(self) -> slice:
        """Which parts are this rank's, of parts that the ranks share: part i is that of rank i % count."""
        return slice(self.index, None, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_all(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of several tensors over the ranks, in one message."""
        if self.count == 1:
            return tensors
        total = self.sum(torch.cat([tensor.float().flatten() for tensor in tensors.values()]))
        parts = zip(tensors.items(), total.split([tensor.numel() for tensor in tensors.values()]), strict=True)
        return {key: part.view(tensor.shape) for (key, tensor), part in parts}

    def gather(self, value: _Value) -> list[_Value]:
        """Return the values of all ranks; they are pickled on the way."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], _Value]) -> _Value:
        """Return the first rank's result of a function; a UserError there is raised on every rank."""
        if self.count == 1:
            return function()
        result: list[Any] = [None]
        if self.is_first:
            try:
                result = [function()]
            except UserError as error:
                result = [error]
        dist.broadcast_object_list(result, device=torch.device("cpu"))
        if isinstance(result[0], UserError):
            raise result[0]
        return result[0]

    def any_number(self, number: int | None) -> int | None:
        """Return the largest number that a rank gives, or None."""
        if self.count == 1:
            return number
        largest = torch.tensor(-1 if number is None else number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return None if largest < 0 else int(largest)

    @cached_property
    def _patient(self) -> Any:
        """The ranks without the usual timeout, for `wait`."""
        return dist.new_group(backend="gloo", timeout=timedelta(minutes=MAX_TIMEOUT))

    def wait(self) -> None:
        """Wait until every rank is here, however long one of them trains, downloads or measures."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1), group=self._patient)

    @contextmanager
    def first_of_machine_first(self) -> Iterator[None]:
        """Let the first rank of each machine run the context, then the others: one of them downloads, for example."""
        if self.local_index:
            self.wait()
        yield
        if not self.local_index:
            self.wait()
        self.wait()

    def distributed(self, model: nn.Module) -> nn.Module:
        """Return the model, of several ranks with the first rank's weights and gradients that are means over the ranks.

        Buffers are each rank's own from then on, see `copy_buffers`.
        """
        if self.count == 1:
            return model
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.register_hook(partial(_with_strides, parameter.stride()))
        device = next(model.parameters()).device
        device_ids = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        network.broadcast_buffers = False  # in every pass; the option of this name is deprecated in PyTorch 2.13
        return network

    def copy_buffers(self, module: nn.Module, shared: bool = False) -> None:
        """Set a module's buffers to those of the first rank; shared: buffer i to that of the rank whose part i is."""
        if self.count > 1:
            for i, buffer in enumerate(module.buffers()):
                dist.broadcast(buffer, i % self.count if shared else 0)


def _with_strides(strides: tuple[int, ...], grad: Tensor) -> Tensor:
    """Return a gradient with its parameter's strides where only dimensions of size 1 have others.

    The numbers are at the same places in both cases, but DistributedDataParallel warns of other strides.
    """
    is_same = all(size == 1 or a == b for size, a, b in zip(grad.shape, grad.stride(), strides, strict=True))
    return grad.as_strided(grad.shape, strides) if is_same else grad


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def _timeout() -> timedelta:
    """Return how long a rank waits for another one, from the environment. Raises InvalidValueError."""
    text = os.environ.get("NVAE_TIMEOUT", str(TIMEOUT))
    try:
        if 0 < float(text) <= MAX_TIMEOUT:
            return timedelta(minutes=float(text))
    except ValueError:
        pass
    raise InvalidValueError("the environment variable NVAE_TIMEOUT", repr(text), f"minutes, up to {MAX_TIMEOUT:,}")


def local_index() -> int:
    """Return the number of this process on its machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0)) if started_by_torchrun() else 0


def device_of_process(name: str | None) -> torch.device:
    """Choose the device of this process as `choose_device` does: of several GPUs the one of its number."""
    if name is None and started_by_torchrun() and not torch.cuda.is_available():
        name = "cpu"  # of the devices without CUDA, the only one for several processes
    return choose_device(name, local_index())


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes that torchrun started; without torchrun, yield a single rank.

    A program that has a process group already keeps it. device: of this process. Raises UserError where the connection
    to another process is lost, which ends all ranks.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_index())
        return
    if not started_by_torchrun():
        yield Ranks()
        return
    if device.type not in BACKENDS:
        raise UserError(f"got several processes on the device '{device}', expected cuda or cpu. Use one process.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with ending_at_once():  # waits for the other processes, of which one may have failed; nothing is open yet
            dist.init_process_group(BACKENDS[device.type], timeout=_timeout())
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size(), local_index())
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:  # dist.DistError is one; gloo raises plain RuntimeErrors
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text.lower() for word in CONNECTION_WORDS):
            raise
        raise UserError(
            "the connection to another process was lost, so that all end. The last checkpoint of a training is "
            f"intact; the message of the process that ended first says why ({text.splitlines()[0][:200]})."
        ) from error
