"""How the gradient of a step is computed: operation by operation, compiled, or recorded once and replayed.

A step of a deep hierarchy has thousands of small kernels, and Python takes longer to start them than a GPU to run them.
A CUDA graph holds the kernels of a whole step and starts them in one call. The kernels are the same, so no number
changes. torch.compile also joins operations, which saves memory traffic and changes rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from nvae.schema import TrainingParameters
from nvae.system.errors import UserError, is_out_of_memory

BACKEND = "inductor"  # of torch.compile
# Calls before a recording. They are steps like all others, and in them cuDNN chooses its algorithms, and libraries and
# torch.compile allocate what a recording must find in place.
FIRST_CALLS = 3


class Execution(NamedTuple):
    """How the gradient of a step is computed. reason: why not as the key `compile` asks; empty if it is."""

    compiles: bool  # the forward pass and the loss, with their gradient
    records: bool  # the whole gradient
    reason: str = ""


def choose_execution(
    schedule: TrainingParameters, device: torch.device, half: torch.dtype | None, ranks: int
) -> Execution:
    """Return how a training computes its gradients. half: the dtype of autocast, if any. ranks: processes."""
    compiles, records = schedule.compile is True, schedule.compile is not False and device.type == "cuda"
    asked = compiles or records
    if asked and ranks > 1:
        return Execution(False, False, "several processes exchange gradients during the backward pass")
    if asked and half is torch.float16:
        return Execution(False, False, "float16 adapts the scale of the loss")
    if compiles and schedule.use_tensor_checkpoints:
        return Execution(False, records, "use_tensor_checkpoints computes activations twice, which is not compiled")
    return Execution(compiles, records)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors and constants, compiled as one graph for every shape.

    The function raises UserError where a network cannot be compiled: most often, there is no C++ compiler.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # a second that most trainings do not need

    compiled_function = torch.compile(function, backend=BACKEND, fullgraph=True, dynamic=False)

    def call(*arguments: Any) -> Any:
        try:
            return compiled_function(*arguments)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).split("\n", maxsplit=1)[0][:200]
            raise UserError(
                f"torch.compile failed ({reason}). Install a C++ compiler, or set training_parameters.compile to auto, "
                "and continue from the last checkpoint."
            ) from error

    return call


class Recorder(Protocol):
    """Runs a function, and records a run."""

    def run(self, function: Callable[[], Any]) -> Any:
        """Return the result of a function."""

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        """Record the operations of a function, without their effects; return the result and what replays them.

        Every replay works on the same tensors, and writes its result into the tensors of the first value.
        """


class CudaRecorder:
    """Records the kernels of a function as a CUDA graph.

    The runs before are on the stream of the recording, to which autograd and the libraries bind what they keep.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, function: Callable[[], Any]) -> Any:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                result = function()
            current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread is watched: others read images and pin their memory.
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                return function(), graph.replay
        except RuntimeError as error:
            first = error.__context__ or error  # the end of a failed recording fails too
            if is_out_of_memory(first):
                raise first from error
            raise UserError(
                f"the step of this training cannot be recorded as a CUDA graph ({str(first)[:200]}). "
                "Set training_parameters.compile to False, and continue from the last checkpoint."
            ) from error


class Recorded:
    """A function of a key and tensors that is recorded in call number `FIRST_CALLS` + 1, and replayed from then on.

    key: everything but numbers in tensors that the function depends on; another key or other shapes begin anew. The
    function may also read and change tensors that stay in place, such as weights. Its results are new tensors.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._key: Hashable = None
        self._calls = 0
        self._replay: Callable[[], object] | None = None
        self._inputs: tuple[Any, ...] = ()
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, key: Hashable, *inputs: Any) -> dict[str, Tensor]:
        """Return the function's results. inputs: float32 tensors on the device, and lists of them."""
        leaves = tree_leaves(inputs)
        key = (key, *(tensor.shape for tensor in leaves))
        if key != self._key:
            self._replay, self._outputs = None, {}  # gives back the memory of the recording before
            self._key, self._calls, self._inputs = key, 0, tree_map(torch.empty_like, inputs)
        torch._foreach_copy_(tree_leaves(self._inputs), leaves)
        self._calls += 1
        if self._calls <= FIRST_CALLS:
            return self._recorder.run(lambda: self._function(key[0], *self._inputs))
        if self._replay is None:
            self._outputs, self._replay = self._recorder.record(lambda: self._function(key[0], *self._inputs))
        self._replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}
