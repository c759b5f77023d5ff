"""The trainer: everything that evolves in training, and one step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from nvae.checkpoint import load, restore, save, with_best_weights
from nvae.data.batches import BatchSource
from nvae.data.images import Data
from nvae.data.training_images import TrainingImages, epoch_order, training_images
from nvae.models.batch_norms import synchronize_batch_norms
from nvae.models.distributions import Noise
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.objective import ElboTerms, balanced_kl, elbo_terms, kl_coefficient, regularization_coefficient
from nvae.optim import build_optimizer, hyperparameters
from nvae.schema import ModelConfig
from nvae.system.devices import half_dtype
from nvae.system.errors import UserError
from nvae.system.ranks import Ranks
from nvae.system.seeds import redrawn, seeded, seeded_defaults
from nvae.training.ema import EMA
from nvae.training.history import BestWeights, ValidationHistory
from nvae.training.recovery import Recovery, StepNumbers, check_good, check_skips
from nvae.training.resuming import restore_training, training_state
from nvae.training.schedules import Validation, kl_warmup, learning_rate, stops_early
from nvae.training.state import Progress, RunningMean, Snapshot, Stateful


class Trainer:
    """A model in training on a data set.

    model: the weights that the optimizer changes. eval_model: the model for validation, pictures and the result.
    progress, running_mean, recovery, metadata, run: see `state.py`, `recovery.py` and `checkpoint.save`.
    ranks: the processes of this training. Each has a trainer with the same weights, data and progress, and computes its
    share of every batch.
    """

    def __init__(self, config: ModelConfig, data: Data, device: torch.device, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.config = config
        self.schedule = config.training_parameters
        self.data = data
        self.device = device
        self.model = build_model(config).to(device)
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        if self.ranks.count > min(self.part_sizes):
            raise UserError(
                f"got {self.ranks.count} processes for parts of a batch of {min(self.part_sizes)} images, expected an "
                "image or more for each process. Set a larger batch_size, a smaller gradient_accumulation, or use "
                "fewer processes."
            )
        synchronize = self.has_batch_norm and self.ranks.count > 1 and self.schedule.sync_batch_norm
        smallest = min(self.part_sizes) // (1 if synchronize else self.ranks.count)
        if self.has_batch_norm and smallest == 1 and self.model.scales[0].resolution == 1:
            raise UserError(
                "batch norm needs more than one value per channel: got a part of a batch with one image, and a top "
                "level of 1 x 1. Set batch_size to 2 or more per part of gradient_accumulation, with at least as many "
                "images, or use fewer scales."
            )
        self.model.recompute_activations(self.schedule.use_tensor_checkpoints)
        decay = self.schedule.ema_decay
        self.ema = None if decay is None else EMA(self.model, decay)
        if synchronize:
            synchronize_batch_norms(self.model)
        self.regularizers = torch.nn.ModuleDict(self.model.regularization_terms())
        self.optimizer = build_optimizer(self.model, self.schedule)
        self._network = self._distributed(synchronize) if self.ranks.count > 1 else self.model
        self.half = half_dtype(device) if self.schedule.half_precision else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.progress = Progress()
        self.running_mean = RunningMean()
        self.recovery = Recovery()
        self.history = ValidationHistory()
        self.best_weights = BestWeights()  # filled with early stopping only
        self.metadata: dict[str, Any] = {}
        self.continue_with_changed_data = False  # in `resume`
        self.run: str | None = None

    @property
    def eval_model(self) -> HierarchicalVAE:
        """The model for validation, pictures and the result: with the EMA of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def model_for_pictures(self) -> HierarchicalVAE:
        """Return `eval_model`, or a copy where its batch norms expect all ranks, so that one rank can recalibrate."""
        model = self.eval_model
        if self.ranks.count == 1 or model is not self.model:
            return model
        copy = build_model(self.config).to(self.device)
        copy.load_state_dict(model.state_dict())
        return copy.eval().requires_grad_(False)

    def _distributed(self, synchronized: bool) -> DistributedDataParallel:
        """Return the model with gradients that are means over the ranks. Batch norms have equal statistics, or the
        first rank's."""
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            self.model, device_ids=[self.device] if on_gpu else None, broadcast_buffers=not synchronized
        )

    def initialize(self, path: Path) -> None:
        """Take the weights and statistics of a file of the same networks. Raises CheckpointError."""
        content = self.ranks.from_first(lambda: with_best_weights(load(path)))
        for model in {self.model, self.eval_model}:
            restore(model, content, path)

    def share_statistics(self) -> None:
        """Give all ranks the running statistics of the first one, which differ without synchronized batch norms."""
        for model in {self.model, self.eval_model}:
            self.ranks.copy_buffers(model)

    def calibrate(self) -> None:
        """Fill the buffers that depend on the data, once before training."""
        self.model.calibrate(self.data.training)
        if self.ema is not None:
            self.ema.copy_buffers(self.model)

    @property
    def evolving(self) -> dict[str, Stateful]:
        """Everything but weights and metadata that a checkpoint saves and restores, by its name in the file."""
        return {
            "optimizer": self.optimizer,
            "regularizers": self.regularizers,
            "scaler": self.scaler,
            "progress": self.progress,
            "running_mean": self.running_mean,
            "recovery": self.recovery,
            "history": self.history,
            "best": self.best_weights,
        }

    # ------------------------------------------------------------------------------------------- position, schedules

    @property
    def batch_size(self) -> int:
        """Images per step: the config's, or all training images if there are fewer."""
        return min(self.schedule.batch_size, len(self.data.training))

    @property
    def part_sizes(self) -> list[int]:
        """Images in every part of a batch: equal, or nearly if the data set has fewer images than a batch."""
        parts = min(self.schedule.gradient_accumulation, self.batch_size)
        return [self.batch_size // parts + (i < self.batch_size % parts) for i in range(parts)]

    @property
    def steps_per_epoch(self) -> int:
        """The number of full batches. The remaining images are left out of an epoch."""
        return len(self.data.training) // self.batch_size

    @property
    def epoch(self) -> float:
        """The position in epochs, with fractions."""
        return self.progress.epoch + self.progress.image / (self.steps_per_epoch * self.batch_size)

    @property
    def current_learning_rate(self) -> float:
        rate = learning_rate(self.epoch, self.schedule, self.steps_per_epoch, self.history.validations)
        return rate * self.recovery.learning_rate_factor

    @property
    def stopped_early(self) -> bool:
        """Whether the validations so far end the training, before its last epoch or with it."""
        best, history = self.best_weights.best, self.history.validations
        return best is not None and stops_early(best.validation, history[-1], self.schedule)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or early stopping ends the training."""
        return self.progress.epoch >= self.schedule.epochs or self.stopped_early

    def record_validation(self, elbo: float, kl_per_group: list[float]) -> None:
        """Record a validation of `eval_model` at this position; nats per image."""
        validation = Validation(self.epoch, elbo)
        self.history.validations.append(validation)
        self.metadata["kl_per_group"] = kl_per_group
        if self.schedule.early_stopping_patience is not None:
            self.best_weights.add(validation, kl_per_group, self.eval_model)

    def result(self) -> tuple[HierarchicalVAE, dict[str, Any]]:
        """Return the model that the training results in, and its metadata: with early stopping the best weights."""
        best = self.best_weights.best
        if best is None:
            return self.eval_model, self.metadata
        model = build_model(self.config).to(self.device)
        model.load_state_dict(best.weights)
        return model.eval().requires_grad_(False), self.metadata | {"kl_per_group": best.kl_per_group}

    @property
    def current_kl_coefficient(self) -> float:
        warmup = kl_warmup(self.schedule, self.steps_per_epoch)
        return kl_coefficient(self.epoch, warmup.rise, warmup.delay)

    @property
    def current_regularization_coefficient(self) -> float:
        """The weight of the model's regularization terms; 0 for a model without any."""
        schedule = self.schedule
        if not self.regularizers:
            return 0.0
        return self.recovery.regularization_factor * regularization_coefficient(
            schedule.regularization_constant, schedule.regularization_constant_initial, self.current_kl_coefficient
        )

    @property
    def draws_seed(self) -> int:
        """The seed of the noise: the config's, and another one after every recovery."""
        return redrawn(self.schedule.seed, self.recovery.count)

    def order(self) -> Tensor:
        """Return the order of the training images in this epoch."""
        return epoch_order(len(self.data.training), self.config, self.progress.epoch, self.recovery.count)

    def batches(self) -> Iterator[Tensor]:
        """Yield the next batch, uint8 (B, C, S, S), until the epoch ends. Call `step` with each before the next one.

        The progress decides which batch is the next one, not what the source has read in advance.
        """
        epoch, order, size = self.progress.epoch, self.order(), self.batch_size
        while self.progress.epoch == epoch:
            starts = range(self.progress.image, len(order) - size + 1, size)
            with closing(self._batch_source.batches(order[first : first + size] for first in starts)) as batches:
                for first, images_u8 in zip(starts, batches, strict=True):
                    if (self.progress.epoch, self.progress.image) != (epoch, first):
                        break  # training has gone to another position
                    yield images_u8

    @cached_property
    def _batch_source(self) -> BatchSource:
        """The training images, kept where they fit beside the model and the state of its training."""
        return BatchSource(self.data.training, self.device)

    # ----------------------------------------------------------------------------------------------------- one step

    def inputs_and_targets(self, images_u8: Tensor) -> TrainingImages:
        """Return the encoder's images and the likelihood's images at this step, both (B, C, S, S) in [0, 1]."""
        return training_images(images_u8, self.config, self.progress.step, self.device, self.recovery.count)

    def step(self, images_u8: Tensor) -> dict[str, Any]:
        """Take one training step on uint8 images (B, C, S, S) and return its metrics.

        Tensors are means over the batch, on the device: loss, log_likelihood, kl_per_group (G,) and the gradient_norm
        before clipping. The batch is computed in `gradient_accumulation` parts, and the images and the noise are those
        of the whole batch: without batch norms, KL balancing and dropout, which act on each part, the gradient is that
        of the whole batch. Numbers: learning_rate, kl_coefficient and regularization_coefficient of this step, skipped.
        A step is skipped if the loss, the gradient or a buffer is not finite, if the gradient norm exceeds
        gradient_skip_threshold, or if the loss is far above the last ones (see `recovery.py`). A skipped step changes
        only the counts of steps and the loss scale.
        Raises DivergenceError after a skipped step if 100 more steps were skipped than accepted, or if a weight or
        another number of the training state is not finite.
        """
        schedule, model = self.schedule, self.model
        model.train()
        images, targets = self.inputs_and_targets(images_u8)
        generator = seeded(self.draws_seed, "training noise", self.progress.step, self.device)
        noise = model.draw_posterior_noise(len(images), generator)
        rate, kl_weight = self.current_learning_rate, self.current_kl_coefficient
        regularization = self.current_regularization_coefficient

        self._buffers.take()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded_defaults(self.draws_seed, "dropout", self.progress.step, self.device):
            means = self._backward(images, targets, noise, kl_weight, regularization)
        self.scaler.unscale_(self.optimizer)
        gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        numbers = self._step_numbers(means["loss"], means.pop("weighted_kl"), gradient_norm)
        reason = self.recovery.reason_to_skip(numbers, kl_weight, schedule.gradient_skip_threshold)
        metrics = {
            **means,
            "gradient_norm": gradient_norm,
            "learning_rate": rate,
            "kl_coefficient": kl_weight,
            "regularization_coefficient": regularization,
            "skipped": reason is not None,
        }
        if metrics["skipped"]:
            self._buffers.restore()
        else:
            if schedule.gradient_clipping is not None:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), schedule.gradient_clipping, gradient_norm)
            for group in self.optimizer.param_groups:
                group.update(hyperparameters(schedule, rate))
            self.scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update(self.model)
            self.running_mean.add(metrics, len(images))
        self.scaler.update()
        self._advance(len(images), metrics["skipped"])
        self.recovery.record(numbers, kl_weight, metrics["skipped"], self.progress.step)
        if reason is not None:
            check_skips(self, reason, numbers)
        return metrics

    def _backward(
        self, images: Tensor, targets: Tensor, noise: Noise, kl_weight: float, regularization: float
    ) -> dict[str, Tensor]:
        """Add the gradient of a batch, part by part; return means over the batch.

        Keys: loss, weighted_kl (the part of the loss that is proportional to kl_weight), log_likelihood, kl_per_group.
        Of each part, a rank computes its share; the gradient and the results are those of all ranks.
        """
        means: dict[str, Tensor] = {}
        first = 0
        for size in self.part_sizes:
            last, own = first + size, self.ranks.share(first, first + size)
            share = (own.stop - own.start) / len(images)
            is_last = last == len(images)
            with nullcontext() if is_last or self._network is self.model else self._network.no_sync():
                with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
                    output = self._network(images[own], [group[own] for group in noise])
                terms = elbo_terms(output, targets[own])
                negative_elbo, weighted_kl = self._negative_elbo(terms, kl_weight, size)
                loss = share * negative_elbo
                if is_last:
                    loss = loss + self._regularization(regularization) / self.ranks.count
                self.scaler.scale(self.ranks.count * loss).backward()  # the gradient is the mean over the ranks
            values = {
                "loss": loss.detach(),
                "weighted_kl": share * weighted_kl.detach(),
                "log_likelihood": share * terms.log_likelihood.detach().mean(),
                "kl_per_group": share * terms.kl.detach().mean(0),
            }
            means = {key: means[key] + value for key, value in values.items()} if means else values
            first = last
        return self._sum_over_ranks(means)

    def _sum_over_ranks(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the metrics of all ranks in one message."""
        if self.ranks.count == 1:
            return means
        total = self.ranks.sum(torch.cat([value.float().flatten() for value in means.values()]))
        sizes = [value.numel() for value in means.values()]
        parts = zip(means.items(), total.split(sizes), strict=True)
        return {key: part.view(value.shape) for (key, value), part in parts}

    def _negative_elbo(self, terms: ElboTerms, kl_weight: float, part_size: int) -> tuple[Tensor, Tensor]:
        """Return the means over images of the weighted negative ELBO and of its KL, in the unit of `loss_scale`.

        part_size: images of this part of the batch on all ranks.
        """
        schedule = self.schedule
        unit = math.log(2) * self.data.training[0].numel() if schedule.loss_scale == "bits_per_dimension" else 1.0
        if schedule.kl_balancing:
            total = terms.kl.detach().abs().sum(0)
            mean_kl = (self.ranks.sum(total) if kl_weight < 1 else total) / part_size
            kl = balanced_kl(terms.kl, self.model.levels, kl_weight, mean_kl)
        else:
            kl = kl_weight * terms.kl.sum(1)
        weighted_kl = schedule.kl_constant * kl
        return (weighted_kl - terms.log_likelihood).mean() / unit, weighted_kl.mean() / unit

    def _regularization(self, coefficient: float) -> Tensor | float:
        """Return the weighted sum of the model's regularization terms. Each call advances the power iterations."""
        if not coefficient:
            return 0.0
        return coefficient * sum(term() for term in self.regularizers.values())

    @cached_property
    def _buffers(self) -> Snapshot:
        """The tensors that a forward pass changes: batch-norm statistics and the vectors of power iterations."""
        saved = self.model.state_dict(keep_vars=True)  # without constants, such as masks
        buffers = [buffer for name, buffer in self.model.named_buffers() if name in saved]
        return Snapshot([*buffers, *self.regularizers.buffers()])

    def _step_numbers(self, loss: Tensor, weighted_kl: Tensor, gradient_norm: Tensor) -> StepNumbers:
        # The only synchronization with the device in a step, at the end of the backward pass. With the norms and the
        # copy of the buffers, 0.1 % of a step of quickstart on a CPU; not measured on CUDA yet.
        largest_buffer = self._buffers.largest().to(loss.device)
        numbers = torch.stack([loss.float(), weighted_kl.float(), gradient_norm, largest_buffer])
        numbers = self.ranks.sum(numbers) / self.ranks.count  # not finite if one rank's is not
        return StepNumbers(*numbers.tolist())

    def _advance(self, images: int, skipped: bool) -> None:
        progress = self.progress
        progress.step += 1
        progress.images_seen += images
        progress.image += images
        progress.skipped_steps += skipped
        self._end_epoch_without_a_full_batch()

    def _end_epoch_without_a_full_batch(self) -> None:
        if self.progress.image + self.batch_size > len(self.data.training):
            self.progress.epoch, self.progress.image = self.progress.epoch + 1, 0

    # ------------------------------------------------------------------------------------------------------ on disk

    def save(self, path: Path) -> None:
        """Write the checkpoint from which `resume` continues exactly; of several ranks, the first one writes.

        Raises CheckpointError, and DivergenceError if a number is not finite, or if 10 more steps were skipped than
        accepted: the file at `path` then stays as it is.
        """
        check_good(self)
        if self.ranks.is_first:
            save(self.eval_model, path, training_state(self), self.metadata, self.run)

    def resume(self, path: Path, run: str | None = None) -> list[str]:
        """Restore a checkpoint; return warnings. Raises CheckpointError or UserError and then changes nothing.

        run: refuse a checkpoint of another run than this one (default: continue any).
        """
        warnings = restore_training(self, path, run)
        self._end_epoch_without_a_full_batch()  # the batch size may have grown
        return warnings
