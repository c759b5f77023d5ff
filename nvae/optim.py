"""The optimizers that `training_parameters.optimizer` can name; docs/extending.md says how to add one.

An optimizer takes named parameters and the options lr, betas, eps and weight_decay. Its parameter groups may have a
`rate_factor`: the learning rate of the group is the scheduled rate times the factor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nvae.schema import TrainingParameters

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024
NEWTON_SCHULZ_STEPS = 5
BATCH_NUMBERS = 2**22  # in a batch of matrices, which bounds the memory of a step to a few times 16 MiB


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return nearly U V^T of each matrix X = U S V^T of a batch (n, M, N), M <= N (Jordan et al. 2024).

    The singular values become about 1. Every iteration multiplies by a polynomial of X X^T from the left, and these
    polynomials commute, so they are multiplied with each other, (M, M), and with X once, at the end.
    """
    x = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram = x @ x.mT
    factor = product = _polynomial(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    return product @ x


def _polynomial(gram: Tensor) -> Tensor:
    """Return a + b G + c G^2 of each matrix G of a batch (n, M, M)."""
    a, b, c = NEWTON_SCHULZ
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


class Muon(torch.optim.AdamW):
    """Muon for matrices and convolution kernels, AdamW for all other parameters.

    A kernel counts as the matrix (out, in * h * w). Its update is the orthogonalized Nesterov momentum, with betas[0]
    (Jordan et al. 2024), times 0.2 * sqrt(longer side): as large as AdamW's, so that both take the same learning rate
    and weight decay (Liu et al. 2025, section 2.2). Matrices of one shape are orthogonalized in one batch.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], **options: Any) -> None:
        matrices: list[tuple[str, nn.Parameter]] = []
        others: list[tuple[str, nn.Parameter]] = []
        for name, parameter in named:
            is_matrix = parameter.dim() > 1 and 1 < parameter.shape[0] < parameter.numel()
            (matrices if is_matrix else others).append((name, parameter))
        groups = [{"params": matrices, "is_muon": True}, {"params": others, "is_muon": False}]
        super().__init__([group for group in groups if group["params"]], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["is_muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["is_muon"]:
                for batch in _batches_of_one_shape(group["params"]):
                    self._step_muon(batch, group)
        return loss

    def _step_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Take a step with matrices of one shape, some of them perhaps transposed."""
        beta, rate = group["betas"][0], group["lr"]
        gradients: list[Any] = [parameter.grad for parameter in parameters]  # tensors
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(parameter)}  # AdamW expects `step`
        momenta = [state["momentum"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        wide = torch.stack([_wide(update) for update in torch._foreach_lerp(gradients, momenta, beta)])
        updates = [
            (update.T if _is_tall(parameter) else update).reshape(parameter.shape)
            for update, parameter in zip(orthogonalized(wide), parameters, strict=True)
        ]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-rate * 0.2 * math.sqrt(wide.shape[2]))


def _is_tall(kernel: Tensor) -> bool:
    return len(kernel) ** 2 > kernel.numel()


def _wide(kernel: Tensor) -> Tensor:
    """Return a kernel (out, ...) as the matrix (out, the rest), transposed if it has more rows than columns."""
    return kernel.flatten(1).T if _is_tall(kernel) else kernel.flatten(1)


def _batches_of_one_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters with a gradient whose `_wide` matrices have one shape, at most BATCH_NUMBERS numbers."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape[tuple(sorted((len(parameter), parameter[0].numel())))].append(parameter)
    for (rows, columns), alike in by_shape.items():
        size = max(BATCH_NUMBERS // (rows * columns), 1)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamax": torch.optim.Adamax,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}


def build_optimizer(model: nn.Module, schedule: TrainingParameters) -> torch.optim.Optimizer:
    """Build the optimizer of a training schedule for all parameters of a model."""
    optimizer = OPTIMIZERS[schedule.optimizer](
        list(model.named_parameters()),
        lr=schedule.learning_rate,
        betas=schedule.optimizer_betas,
        eps=schedule.optimizer_epsilon,
        weight_decay=schedule.weight_decay,
        foreach=True,
    )
    for group in optimizer.param_groups:
        group.setdefault("rate_factor", 1.0)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters())), "every parameter must be in exactly one group"
    return optimizer


def _states_of_a_layer(schedule: TrainingParameters) -> dict[str, dict[str, Tensor]]:
    """Return what the optimizer of a training schedule keeps for the `weight` and the `bias` of a layer."""
    layer = nn.Linear(3, 2, device="meta").to_empty(device="cpu")  # draws no random numbers
    optimizer = build_optimizer(layer, schedule)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: optimizer.state[parameter] for name, parameter in layer.named_parameters()}


def num_moments(schedule: TrainingParameters) -> int:
    """Return how many tensors of a matrix's shape the optimizer of a training schedule keeps for the matrix."""
    return sum(value.dim() == 2 for value in _states_of_a_layer(schedule)["weight"].values())


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: the scheduled rate times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], schedule: TrainingParameters) -> None:
    """Load the state of an optimizer of the same kind. The options stay: the config and this program decide them.

    Raises ValueError for a state whose tensors do not fit the parameters, and other errors of `load_state_dict`.
    """
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    expected = [moments.keys() for moments in _states_of_a_layer(schedule).values()]
    for parameter, moments in optimizer.state.items():
        if not isinstance(parameter, Tensor) or moments.keys() not in expected:
            raise ValueError(f"got the moments {', '.join(map(str, moments))[:100]}, expected those of the optimizer")
        for name, moment in moments.items():
            if moment.shape != (() if name == "step" else parameter.shape) or not moment.is_floating_point():
                raise ValueError(f"{name}: got a shape of {tuple(moment.shape)}, expected {tuple(parameter.shape)}")
        if moments["step"] < 0:
            raise ValueError(f"step: got {moments['step']:g}, expected a number from 0 on")
