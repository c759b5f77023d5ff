"""A compiled step, and a recorded one: the numbers are those of the plain step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nvae.schema import TrainingParameters
from nvae.system.errors import UserError
from nvae.training import compiled
from nvae.training.compiled import FIRST_CALLS, Execution, Recorded, choose_execution
from nvae.training.resuming import resume_training, save_training
from nvae.training.trainer import Trainer

from .helpers import DVP, LADDER, NVLABS, VDVAE, advance, differences, everything

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def make_compiled(make_trainer, monkeypatch):
    """A function: a trainer whose step is compiled by a backend."""

    def make(backend: str, model: dict[str, Any] | None = None, **changes: Any) -> Trainer:
        monkeypatch.setattr(compiled, "BACKEND", backend)
        return make_trainer(model, compile=True, **changes)

    return make


# ---------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("changes", "device", "half", "ranks", "expected"),
    [
        ({}, CUDA, None, 1, (False, True)),
        ({}, CUDA, torch.bfloat16, 1, (False, True)),
        ({}, CPU, None, 1, (False, False)),
        ({"compile": False}, CUDA, None, 1, (False, False)),
        ({"compile": True}, CUDA, None, 1, (True, True)),
        ({"compile": True}, CPU, None, 1, (True, False)),
        ({"use_tensor_checkpoints": True}, CUDA, None, 1, (False, True)),
    ],
)
def test_execution_is_that_of_the_key(changes, device, half, ranks, expected):
    assert choose_execution(TrainingParameters(**changes), device, half, ranks) == Execution(*expected)


@pytest.mark.parametrize("key", ["auto", True])
def test_execution_is_plain_for_several_processes_and_for_float16(key):
    schedule = TrainingParameters(compile=key)
    for half, ranks in ((None, 2), (torch.float16, 1)):
        compiles, records, reason = choose_execution(schedule, CUDA, half, ranks)
        assert (compiles, records) == (False, False) and reason
        assert not choose_execution(TrainingParameters(compile=False), CUDA, half, ranks).reason
    recomputed = TrainingParameters(compile=True, use_tensor_checkpoints=True)
    assert choose_execution(recomputed, CUDA, None, 1)[:2] == (False, True)


# ------------------------------------------------------------------------------------------------------------ compiled


@pytest.mark.slow
@pytest.mark.parametrize("model", [VDVAE, LADDER, DVP, NVLABS], ids=["vdvae", "ladder", "dvp", "nvae"])
def test_steps_of_a_compiled_network_are_equal(make_trainer, make_compiled, model):
    """The backend "eager" runs the same operations in the same order. Two parts, and both sides of the KL warm-up."""
    changes = {"gradient_accumulation": 2, "warmup_epochs": 2 / 3}
    plain, same = make_trainer(model, **changes), make_compiled("eager", model, **changes)
    assert same.execution == Execution(compiles=True, records=False)
    for _ in range(3):
        (expected,), (metrics,) = advance(plain, 1), advance(same, 1)
        assert metrics["loss"].item() == expected["loss"].item()
    assert not differences(everything(plain), everything(same))


def test_failed_compilation_is_one_sentence(make_compiled):
    def fails(graph, example_inputs):
        raise FileNotFoundError("no compiler c++\nmore")

    with pytest.raises(UserError, match=r"no compiler c\+\+\)\. Install a C\+\+ compiler"):
        advance(make_compiled(fails, VDVAE), 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [NVLABS, VDVAE], ids=["nvae", "vdvae"])
def test_steps_with_a_compiled_gradient_are_close(make_trainer, make_compiled, model):
    """The backend "aot_eager" also traces the backward pass, so rounding may differ.

    "inductor" takes minutes on a CPU; `benchmarks/gpu.py` compares its steps on a GPU.
    """
    plain, same = make_trainer(model), make_compiled("aot_eager", model)
    for _ in range(3):
        (expected,), (metrics,) = advance(plain, 1), advance(same, 1)
        for key in ("loss", "log_likelihood", "kl_per_group", "gradient_norm"):
            torch.testing.assert_close(metrics[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_checkpoint_does_not_depend_on_the_compiler(make_trainer, make_compiled, tmp_path):
    """Plain, compiled and plain again, each from the checkpoint of the one before."""
    whole = make_trainer(VDVAE, gradient_accumulation=2)
    advance(whole, 6)
    for key in (False, True, "auto"):
        trainer = make_compiled("eager", VDVAE, gradient_accumulation=2)
        if key is not True:
            trainer = make_trainer(VDVAE, gradient_accumulation=2, compile=key)
        if key is not False:
            assert resume_training(trainer, tmp_path / "a.checkpoint") == []
        advance(trainer, 2)
        save_training(trainer, tmp_path / "a.checkpoint")
    assert not differences(everything(whole), everything(trainer))


# ------------------------------------------------------------------------------------------------------------ recorded

# What a CUDA graph cannot hold: numbers that Python reads or writes, and draws from a generator of the program's own.
REFUSED = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "lift_fresh", "masked_select")


def same_memory(value: Any) -> Any:
    """Return a tensor in the memory of a tensor, and other values as they are."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class Operations(TorchDispatchMode):
    """Keeps every operation with its tensors, as they are when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function.overloadpacket.__name__ not in REFUSED, f"{function} cannot be recorded"
        assert not any(isinstance(value, torch.Generator) for value in tree_leaves((arguments, options)))
        before = tree_map(same_memory, (arguments, options or {}))
        result = function(*arguments, **(options or {}))
        self.calls.append((function, *before, tree_map(same_memory, result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Compute every result anew, in place."""
        for function, arguments, options, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*arguments, **options)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class OperationsRecorder:
    """In place of `CudaRecorder` on a CPU: a replay takes the operations of a call again, on the same tensors."""

    def __init__(self) -> None:
        self.recordings = 0

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        self.recordings += 1
        with Operations() as operations:
            result = function()
        replays = iter([lambda: None])  # the call itself has had the effects of the first one
        return result, lambda: next(replays, operations.replay)()


def recorded(trainer: Trainer) -> OperationsRecorder:
    """Record the step of a trainer on a CPU; return the recorder."""
    recorder = OperationsRecorder()
    trainer.set_gradient = Recorded(trainer._set_gradient, recorder)
    return recorder


@pytest.mark.parametrize(
    ("model", "changes", "recordings"),
    [
        (VDVAE, {"gradient_clipping": 1.0, "ema_decay": 0.5}, 1),
        pytest.param({}, {"warmup_epochs": 2.0}, 2, marks=pytest.mark.slow),  # anew after the KL warm-up, of 6 steps
        pytest.param(NVLABS, {"gradient_accumulation": 2, "half_precision": True}, 1, marks=pytest.mark.slow),
        pytest.param(NVLABS, {"use_tensor_checkpoints": True}, 1, marks=pytest.mark.slow),
        pytest.param({"spectral_normalization": True}, {}, 1, marks=pytest.mark.slow),
        pytest.param(DVP, {"pretrain_prior_epochs": 2}, 2, marks=pytest.mark.slow),  # with dropout; anew after 6 steps
        pytest.param(LADDER, {"optimizer": "muon"}, 1, marks=pytest.mark.slow),
    ],
    ids=["vdvae", "warm-up", "parts", "recomputed", "spectral", "pre-training", "muon"],
)
def test_steps_of_a_recorded_gradient_are_equal(make_trainer, model, changes, recordings):
    changes = {"epochs": 9, "warmup_epochs": 9.0} | changes
    plain, same = make_trainer(model, **changes), make_trainer(model, **changes)
    recorder = recorded(same)
    for _ in range(6 + FIRST_CALLS + 2):
        (expected,), (metrics,) = advance(plain, 1), advance(same, 1)
        assert metrics.keys() == expected.keys()
        assert metrics["loss"].item() == expected["loss"].item()
    assert recorder.recordings == recordings
    assert not differences(everything(plain), everything(same))


def test_recorded_step_is_skipped_and_continued_like_a_plain_one(make_trainer, tmp_path, monkeypatch):
    """With batch norms and power iterations, whose buffers a skipped step restores."""
    plain, same = make_trainer(epochs=9, warmup_epochs=9.0), make_trainer(epochs=9, warmup_epochs=9.0)
    recorded(same)
    for trainer in (plain, same):
        advance(trainer, FIRST_CALLS + 1)
        save_training(trainer, tmp_path / "a.checkpoint")
        draw = trainer.model.draw_noise
        with monkeypatch.context() as patch:
            patch.setattr(
                trainer.model, "draw_noise", lambda *a, draw=draw, **o: [torch.nan * x for x in draw(*a, **o)]
            )
            assert trainer.step(next(trainer.batches()))["skipped"]
        advance(trainer, 1)
        resume_training(trainer, tmp_path / "a.checkpoint")  # while the recording stays
        advance(trainer, 2)
    assert not differences(everything(plain), everything(same))


def test_results_of_a_recorded_function_are_new_tensors():
    total = torch.zeros(())

    def function(key: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
        total.add_(x.sum())
        return {key: 2 * x}

    call = Recorded(function, OperationsRecorder())
    inputs = [torch.full((3,), float(i)) for i in range(FIRST_CALLS + 3)]
    results = [call("twice", x)["twice"] for x in inputs]
    assert all(torch.equal(result, 2 * x) for result, x in zip(results, inputs, strict=True))
    assert total == sum(x.sum() for x in inputs)
    assert torch.equal(call("twice", torch.ones(2))["twice"], torch.full((2,), 2.0)), "another shape"
    assert call("other", torch.ones(2)).keys() == {"other"}


def test_recording_with_a_number_read_by_python_is_refused():
    call = Recorded(lambda key, x: {"x": x * x.sum().item()}, OperationsRecorder())
    for _ in range(FIRST_CALLS):
        call(None, torch.ones(2))
    with pytest.raises(AssertionError, match="cannot be recorded"):
        call(None, torch.ones(2))


class OneDevice(TorchDispatchMode):
    """Refuses operations that copy between devices."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [x for x in tree_leaves((arguments, options, result)) if isinstance(x, torch.Tensor)]
        assert len({tensor.device.type for tensor in tensors if tensor.dim()}) < 2, f"{function} copies between devices"
        return result


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, NVLABS, LADDER, DVP, VDVAE], ids=["seed", "nvlabs", "ladder", "dvp", "vdvae"])
def test_forward_pass_on_a_gpu_copies_nothing_from_the_cpu(make_trainer, model):
    """On tensors without numbers, which need no GPU. A CUDA graph cannot hold a copy from the CPU."""
    trainer = make_trainer(model)
    trainer.model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in trainer.model.modules():
            for tensors in (module._parameters, module._buffers):
                tensors |= {name: torch.empty_like(x, device=CUDA) for name, x in tensors.items() if x is not None}
        images = torch.empty(4, 3, 8, 8, device=CUDA)
        noise = [torch.empty(4, *group.posterior_noise_shape, device=CUDA) for group in trainer.model.groups]
        number = torch.empty((), device=CUDA)
        with OneDevice():
            _, loss = trainer._elbo(images, images, noise, number, number, 4, is_balanced=True)
    assert loss.negative_elbo.device.type == "cuda"
