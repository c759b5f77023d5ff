"""The trainer: everything that evolves in training, and one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.data.batches import BatchSource
from nvae.data.images import Data
from nvae.data.training_images import TrainingImages, epoch_order, training_images
from nvae.models.batch_norms import synchronize_batch_norms
from nvae.models.distributions import Noise
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.objective import ElboTerms, Loss, elbo_terms, loss_unit, regularization, weighted_negative_elbo
from nvae.optim import build_optimizer, set_learning_rate
from nvae.schema import ModelConfig
from nvae.system.devices import half_dtype
from nvae.system.ranks import Ranks
from nvae.system.seeds import redrawn, seeded, seeded_defaults
from nvae.system.signals import StopRequest
from nvae.training.compiled import CudaRecorder, Recorded, choose_execution, compiled
from nvae.training.ema import EMA
from nvae.training.position import Position, refuse_small_parts
from nvae.training.recovery import Recovery, StepNumbers
from nvae.training.schedules import Rates, beta_nll, rates, stops_early
from nvae.training.state import BestWeights, RunningMean, Snapshot, Stateful, ValidationHistory, refuse_not_finite

STATISTICS_IMAGES = 500  # for the batch-norm statistics of averaged weights


class Phase(NamedTuple):
    """What the gradient of a step consists of."""

    is_pretraining: bool
    is_balanced: bool  # the KL, across latent groups
    is_regularized: bool
    is_weighted: bool  # the log-likelihood, by the scales of the pixels


class Scalars(NamedTuple):
    """The numbers that change from step to step, scalars on the device."""

    kl_weight: Tensor
    regularization_weight: Tensor
    beta: Tensor  # see `elbo_terms`
    stop: Tensor  # 1 if this process was asked to stop


class Trainer:
    """A model in training on a data set.

    model: the weights that the optimizer changes. eval_model: the model for validation, pictures and the result.
    network: what a step calls with images and noise; the model, or its distributed form.
    execution: how the gradient of a step is computed.
    ranks: the processes of this training. Each has a trainer with the same weights, data and position, and computes its
    share of every batch.
    """

    def __init__(self, config: ModelConfig, data: Data, device: torch.device, ranks: Ranks | None = None) -> None:
        self.config, self.data, self.device, self.ranks = config, data, device, ranks or Ranks()
        self.schedule = config.training_parameters
        self.position = Position(self.schedule, len(data.training))
        self.model = build_model(config).to(device)
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        synchronize = self.has_batch_norm and self.ranks.count > 1 and self.schedule.sync_batch_norm
        smallest = min(level.resolution for level in self.model.levels) if self.has_batch_norm else None
        refuse_small_parts(self.position.part_sizes, self.ranks.count, synchronize, smallest)
        self.model.recompute_activations(self.schedule.use_tensor_checkpoints)
        decay = self.schedule.ema_decay
        self.ema = None if decay is None else EMA(self.model, decay)
        if synchronize:
            synchronize_batch_norms(self.model)
        self.regularizers = nn.ModuleDict(self.model.regularization_terms())
        self.optimizer = build_optimizer(self.model, self.schedule)
        self._parameters = list(self.model.parameters())  # a list that stays: the walk through the modules takes time
        self.network: Any = self.ranks.distributed(self.model)
        self.half = half_dtype(device) if self.schedule.half_precision else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.running_mean = RunningMean()
        self.recovery = Recovery()
        self.history = ValidationHistory()
        self.best_weights = BestWeights()  # filled with early stopping only
        self.metadata: dict[str, Any] = {}  # of the files, see `checkpoint.save`
        self.stop = StopRequest()  # of this process
        self.stop_requested = False  # of any process, when the last step's numbers were added up
        self.execution = choose_execution(self.schedule, device, self.half, self.ranks.count)
        self._choose_functions()

    def _choose_functions(self) -> None:
        """Set the functions of a step by `execution`. What they recorded or compiled before is forgotten."""
        self.elbo: Any = compiled(self._elbo) if self.execution.compiles else self._elbo
        records, function = self.execution.records, self._set_gradient
        self.set_gradient: Any = Recorded(function, CudaRecorder(self.device)) if records else function

    def take_likelihood(self, config: ModelConfig) -> None:
        """Change the config to one of the same networks with another likelihood."""
        with torch.device("meta"):
            likelihood = build_model(config).likelihood
        self.config = config
        for model in {self.model, self.eval_model}:
            model.config, model.likelihood = config, likelihood
        self._choose_functions()

    @property
    def evolving(self) -> dict[str, Stateful]:
        """Everything but weights and metadata that a checkpoint saves and restores, by its name in the file."""
        return {
            "optimizer": self.optimizer,
            "regularizers": self.regularizers,
            "scaler": self.scaler,
            "progress": self.position,
            "running_mean": self.running_mean,
            "recovery": self.recovery,
            "history": self.history,
            "best": self.best_weights,
        }

    @property
    def parts(self) -> dict[str, Stateful]:
        """Everything that evolves, weights included, by the name that a message gives."""
        averaged = {} if self.ema is None else {"averaged weights": self.ema.model}
        return {"weights": self.model, **averaged, **self.evolving}

    @property
    def eval_model(self) -> HierarchicalVAE:
        """The model for validation, pictures and the result: with the EMA of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.model

    @property
    def stopped_early(self) -> bool:
        """Whether the validations so far end the training, before its last epoch or with it."""
        best, validations = self.best_weights.best, self.history.validations
        return best is not None and stops_early(best.validation, validations[-1], self.schedule)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or early stopping ends the training."""
        return self.position.epoch >= self.schedule.epochs or self.stopped_early

    @property
    def is_pretraining(self) -> bool:
        """Whether the next step trains what the family trains first, alone."""
        return self.position.epoch < self.model.pretraining_epochs

    @property
    def rates(self) -> Rates:
        """What the schedules and the recoveries say about the next step."""
        return rates(self.position, self.history.validations, self.recovery, bool(self.regularizers))

    @property
    def draws_seed(self) -> int:
        """The seed of the noise: the config's, and another one after every recovery."""
        return redrawn(self.schedule.seed, self.recovery.count)

    def order(self) -> Tensor:
        """Return the order of the training images in this epoch."""
        return epoch_order(len(self.data.training), self.config, self.position.epoch, self.recovery.count)

    def batches(self) -> Iterator[Tensor]:
        """Yield the batches of the rest of the epoch, uint8 (B, C, S, S). Call `step` with each before the next one."""
        order, size = self.order(), self.position.batch_size
        starts = range(self.position.image, self.position.images_per_epoch - size + 1, size)
        with closing(self._batch_source.batches(order[first : first + size] for first in starts)) as batches:
            yield from batches

    @cached_property
    def _batch_source(self) -> BatchSource:
        """The training images, kept where they fit beside the model and the state of its training."""
        return BatchSource(self.data.training, self.device)

    def estimate_statistics(self) -> None:
        """Estimate the batch-norm statistics of the averaged weights, until the next step, from random batches.

        The draws depend on the position alone, and no number of the training changes.
        """
        if self.ema is not None and self.has_batch_norm:
            self.ema.estimate_statistics(self._statistics_passes(self.ema.model))

    def _statistics_passes(self, model: HierarchicalVAE) -> Iterator[tuple[Tensor, Noise]]:
        generator = seeded(self.draws_seed, "averaged statistics", self.position.step)
        size = self.position.part_sizes[0]
        count = min(-(-STATISTICS_IMAGES // size), len(self.data.training) // size)
        order = torch.randperm(len(self.data.training), generator=generator)[: count * size].split(size)
        with closing(self._batch_source.batches(order)) as batches:
            for images_u8 in batches:
                images, _ = self.inputs_and_targets(images_u8)
                yield images, model.draw_noise(size, generator, posterior=True)

    def inputs_and_targets(self, images_u8: Tensor) -> TrainingImages:
        """Return the encoder's images and the likelihood's images at this step, both (B, C, S, S) in [0, 1]."""
        return training_images(images_u8, self.config, self.position.step, self.device, self.recovery.count)

    def step(self, images_u8: Tensor) -> dict[str, Any]:
        """Take one training step on uint8 images (B, C, S, S) and return its metrics.

        Tensors are means over the batch, on the device: loss, log_likelihood, kl_per_group (G,) and the gradient_norm
        before clipping. Numbers: the `Rates` of this step, skipped. The batch is computed in `gradient_accumulation`
        parts of the same images and noise: without batch norms, KL balancing and dropout, which act on each part, the
        gradient is that of the whole batch. A step of the pre-training has the loss and the gradient_norm alone.
        `recovery.py` says which steps are skipped; a skipped step changes only the
        counts of steps and the loss scale. Raises DivergenceError after a skipped step if too many were skipped, or if
        a weight or another number of the training state is not finite.
        """
        if not self.model.training:  # the modes of more than a thousand modules
            self.model.train()
        images, targets = self.inputs_and_targets(images_u8)
        generator = seeded(self.draws_seed, "training noise", self.position.step, self.device)
        noise = self.model.draw_noise(len(images), generator, posterior=True)
        rates, is_pretraining = self.rates, self.is_pretraining

        is_balanced = self.schedule.kl_balancing and rates.kl_coefficient < 1
        beta, is_asked_to_stop = beta_nll(self.position), float(self.stop.signal is not None)
        phase = Phase(is_pretraining, is_balanced, rates.regularization_coefficient > 0, beta > 0)
        values = rates.kl_coefficient, rates.regularization_coefficient, beta, is_asked_to_stop
        scalars = Scalars(*(torch.full((), value, device=self.device) for value in values))
        with seeded_defaults(self.draws_seed, "dropout", self.position.step, self.device):
            results = self.set_gradient(phase, images, targets, noise, scalars)

        *decisive, stop = results.pop("numbers").tolist()  # the only wait for the device in a step
        numbers, self.stop_requested = StepNumbers(*decisive), stop > 0
        reason = self.recovery.reason_to_skip(numbers, rates.kl_coefficient, self.schedule)
        metrics = {**results, **rates._asdict(), "skipped": reason is not None}
        if reason is None:
            self._apply(results["gradient_norm"], rates.learning_rate)
            self.running_mean.add(metrics, len(images))
        else:
            self._buffers.restore()
        self.scaler.update()

        self.position.advance(len(images), reason is not None)
        self.recovery.record(numbers, rates.kl_coefficient, reason is not None, self.position.step)
        if reason is not None:
            refuse_not_finite(self.parts, self.position.step)
            self.recovery.refuse_too_many_skips(self.position.step, reason, numbers)
        if is_pretraining and not self.is_pretraining:
            self.recovery.forget_steps()
        return metrics

    def _set_gradient(
        self, phase: Phase, images: Tensor, targets: Tensor, noise: Noise, scalars: Scalars
    ) -> dict[str, Tensor]:
        """Set the gradient of a batch; return the metrics of `step` that are tensors, and `_step_numbers`.

        A CUDA graph may hold all of this: the numbers that change from step to step within a phase are in tensors.
        """
        self._buffers.take()
        self.optimizer.zero_grad(set_to_none=True)
        if phase.is_pretraining:
            means = self._pretrain(images, noise)
        else:
            means = self._backward(phase, images, targets, noise, scalars)
        self.scaler.unscale_(self.optimizer)
        gradient_norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        numbers = self._step_numbers(means["loss"], means.pop("weighted_kl"), gradient_norm, scalars.stop)
        return {**means, "gradient_norm": gradient_norm, "numbers": numbers}

    def _backward(
        self, phase: Phase, images: Tensor, targets: Tensor, noise: Noise, scalars: Scalars
    ) -> dict[str, Tensor]:
        """Add the gradient of a batch, part by part; return means over the batch, by the names of `step`'s metrics.

        Of each part, a rank computes its share; the gradient and the results are those of all ranks.
        """
        ranks, first = self.ranks, 0
        means: dict[str, Tensor] = {}
        for size in self.position.part_sizes:
            own, is_last = ranks.share(first, first + size), first + size == len(images)
            share = (own.stop - own.start) / len(images)
            waiting = nullcontext() if is_last or ranks.count == 1 else self.network.no_sync()
            with waiting, self.model.weights_computed_once():
                own_noise = [group[own] for group in noise]
                beta = scalars.beta if phase.is_weighted else None
                terms, part = self.elbo(
                    images[own], targets[own], own_noise, scalars.kl_weight, beta, size, phase.is_balanced
                )
                loss = share * part.negative_elbo
                if is_last and phase.is_regularized:
                    loss = loss + regularization(self.regularizers, scalars.regularization_weight, ranks.own)
                self.scaler.scale(ranks.count * loss).backward()  # the gradient is the mean over the ranks
            values = {
                "loss": loss.detach(),
                "weighted_kl": share * part.weighted_kl.detach(),
                "log_likelihood": share * terms.log_likelihood.detach().mean(),
                "kl_per_group": share * terms.kl.detach().mean(0),
            }
            means = {key: means[key] + value for key, value in values.items()} if means else values
            first += size
        return ranks.sum_all(means)

    def _elbo(
        self,
        images: Tensor,
        targets: Tensor,
        noise: Noise,
        kl_weight: Tensor,
        beta: Tensor | None,
        size: int,
        is_balanced: bool,
    ) -> tuple[ElboTerms, Loss]:
        """Return the terms of the ELBO and the loss of this rank's share of a part of `size` images."""
        with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
            output = self.network(images, noise)
        terms = elbo_terms(output, targets, beta)
        mean_kl = self.ranks.sum(terms.kl.detach().abs().sum(0)) / size if is_balanced else None
        dimensions = images[0].numel()
        return terms, weighted_negative_elbo(terms, self.model.levels, self.schedule, kl_weight, dimensions, mean_kl)

    def _pretrain(self, images: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Add the gradient of the pre-training's KL, at the weight 1, as `_backward` does for the loss.

        All other parameters have no gradient, so that no optimizer moves them. The distributed model needs a gradient
        of every parameter; here the ranks add up theirs.
        """
        loss, first = images.new_zeros(()), 0
        for size in self.position.part_sizes:
            own = self.ranks.share(first, first + size)
            with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
                kl = self.model.pretraining_kl(images[own], [group[own] for group in noise])
            part = kl.sum() / len(images) / loss_unit(self.schedule, images[0].numel())
            self.scaler.scale(part).backward()
            loss, first = loss + part.detach(), first + size
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = self.ranks.sum(parameter.grad)
        return self.ranks.sum_all({"loss": loss, "weighted_kl": torch.zeros_like(loss)})

    def _apply(self, gradient_norm: Tensor, rate: float) -> None:
        """Clip the gradient, and update the weights and their average."""
        if self.schedule.gradient_clipping is not None:
            limit = self.schedule.gradient_clipping
            nn.utils.clip_grads_with_norm_(self._parameters, limit, gradient_norm)
        set_learning_rate(self.optimizer, rate)
        self.scaler.step(self.optimizer)
        if self.ema is not None:
            self.ema.update()

    @cached_property
    def _buffers(self) -> Snapshot:
        """The tensors that a forward pass changes: batch-norm statistics and the vectors of power iterations."""
        saved = self.model.state_dict(keep_vars=True)  # without constants, such as masks
        buffers = [buffer for name, buffer in self.model.named_buffers() if name in saved]
        return Snapshot([*buffers, *self.regularizers.buffers()])

    def _step_numbers(self, loss: Tensor, weighted_kl: Tensor, gradient_norm: Tensor, stop: Tensor) -> Tensor:
        """Return the `StepNumbers` and the share of processes that were asked to stop, (5,).

        `stop` is in this message to save another one.
        """
        largest_buffer = self._buffers.largest(self.device)
        numbers = torch.stack([loss.float(), weighted_kl.float(), gradient_norm, largest_buffer, stop])
        return self.ranks.sum(numbers) / self.ranks.count  # not finite if one rank's is not
