"""A training run: everything that evolves, one step of it, and how it is saved and continued."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae.checkpoint import CheckpointError, load, restore, save
from nvae.config import flat
from nvae.data.images import Data, binarize, flip, to_float
from nvae.devices import half_dtype
from nvae.errors import UserError
from nvae.models.families import build_model
from nvae.objective import balanced_kl, elbo_terms, kl_coefficient, regularization_coefficient
from nvae.schema import ModelConfig
from nvae.seeds import seeded
from nvae.training.schedules import kl_warmup, learning_rate

EPSILON = 1e-3
# What may differ between a checkpoint and the config that continues it: the schedule, and where the same images lie.
FIXED_KEYS = {"training_parameters.seed", "training_parameters.spectral_scope"}


def is_changeable(key: str) -> bool:
    """Whether a dotted key may change in a run."""
    return key == "dataset.path" or (key.startswith("training_parameters.") and key not in FIXED_KEYS)


@dataclass
class Averages:
    """Averages over images of what the steps report, since the last `clear`."""

    images: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor], images: int) -> None:
        self.images += images
        for key, value in values.items():
            mean = self.means.setdefault(key, torch.zeros_like(value.detach(), dtype=torch.float32))
            # Moved towards the new value: no large sums, so float32 is enough.
            self.means[key] = mean + (value.detach() - mean) * (images / self.images)

    def values(self) -> dict[str, Any]:
        return {key: mean.tolist() for key, mean in self.means.items()}

    def clear(self) -> None:
        self.images, self.means = 0, {}


@dataclass
class Position:
    """Where training stands: the next image is number `image` of the order of `epoch`."""

    epoch: int = 0
    image: int = 0
    step: int = 0
    images_seen: int = 0


class Run:
    """All that evolves in training a model on a data set, and the step that moves it."""

    def __init__(self, config: ModelConfig, data: Data, device: torch.device) -> None:
        self.config = config
        self.schedule = config.training_parameters
        self.data = data
        self.device = device
        self.model = build_model(config).to(device)
        if self.batch_size == 1 and self.model.levels[0].resolution == 1:
            raise UserError(
                "batch norm needs more than one value per channel, but the top level is 1 x 1 and a batch is one "
                "image; choose a batch_size of at least 2, and have as many images, or fewer halvings."
            )
        self.model.recompute_activations(self.schedule.use_tensor_checkpoints)
        self.regularizers = torch.nn.ModuleDict(self.model.regularization_terms())
        self.optimizer = torch.optim.Adamax(
            self.model.parameters(),
            self.schedule.learning_rate,
            eps=EPSILON,
            weight_decay=self.schedule.weight_decay,
            foreach=True,
        )
        self.half = half_dtype(device) if self.schedule.half_precision else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.position = Position()
        self.averages = Averages()
        self.metadata: dict[str, Any] = {}  # facts about the model that are saved with the weights

    @property
    def batch_size(self) -> int:
        return min(self.schedule.batch_size, len(self.data.training))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: what is left over waits for another epoch's order."""
        return len(self.data.training) // self.batch_size

    @property
    def epoch(self) -> float:
        """The position in epochs, fractions counted."""
        return self.position.epoch + self.position.image / (self.steps_per_epoch * self.batch_size)

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.epoch, self.schedule, self.steps_per_epoch)

    @property
    def kl_coefficient(self) -> float:
        warmup = kl_warmup(self.schedule, self.steps_per_epoch)
        return kl_coefficient(self.epoch, warmup.rise, warmup.delay)

    @property
    def regularization_coefficient(self) -> float:
        schedule = self.schedule
        return regularization_coefficient(
            schedule.regularization_constant, schedule.regularization_constant_initial, self.kl_coefficient
        )

    def order(self) -> Tensor:
        """The order of the training images in this epoch, a function of the seed and the epoch alone."""
        generator = seeded(self.schedule.seed, "order", self.position.epoch)
        return torch.randperm(len(self.data.training), generator=generator)

    def images_of(self, pixels: Tensor) -> Tensor:
        """What the network is shown of uint8 pixels (B, C, S, S) at this step: turned round, binarized, in [0, 1]."""
        images, dataset = to_float(pixels, self.device, self.config.pixel_bits), self.config.dataset
        if dataset.horizontal_flip:
            flips = seeded(self.schedule.seed, "flips", self.position.step, self.device)
            images = flip(images, flips)
        if dataset.binarize:
            images = binarize(images, seeded(self.schedule.seed, "binarization", self.position.step, self.device))
        return images

    def step(self, pixels: Tensor) -> dict[str, Tensor]:
        """One training step on uint8 pixels (B, C, S, S); returns averages over the batch, on the device."""
        schedule, model = self.schedule, self.model
        model.train()
        images = self.images_of(pixels)
        generator = seeded(schedule.seed, "training noise", self.position.step, self.device)
        noise = model.draw_posterior_noise(len(images), generator)
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.learning_rate, schedule.weight_decay

        with torch.autocast(self.device.type, self.half) if self.half else nullcontext():
            result = model(images, noise)
        terms = elbo_terms(result, images)
        if schedule.kl_balancing:
            kl = balanced_kl(terms.kl, model.levels, self.kl_coefficient)
        else:
            kl = self.kl_coefficient * terms.kl.sum(1)
        loss = (schedule.kl_constant * kl - terms.log_likelihood).mean()
        if schedule.regularization_constant:
            regularization = sum(term() for term in self.regularizers.values())
            loss = loss + self.regularization_coefficient * regularization

        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if schedule.gradient_clipping is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.gradient_clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()

        values = {"loss": loss, "log_likelihood": terms.log_likelihood.mean(), "kl_per_group": terms.kl.mean(0)}
        self.averages.add(values, len(images))
        self._advance(len(images))
        return values

    def _advance(self, images: int) -> None:
        position = self.position
        position.step += 1
        position.images_seen += images
        position.image += images
        self._end_epoch_without_a_whole_batch()

    def _end_epoch_without_a_whole_batch(self) -> None:
        if self.position.image + self.batch_size > len(self.data.training):
            self.position.epoch, self.position.image = self.position.epoch + 1, 0

    # ------------------------------------------------------------------------------------------- on disk

    def save(self, path: Path) -> None:
        """Write the checkpoint from which `resume` goes on exactly.

        Raises CheckpointError, and UserError instead of replacing good weights by some that are not finite.
        """
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise UserError(f"the weights are not finite any more, and were not saved; {how_to_go_on(path)}")
        training = {
            "position": vars(self.position).copy(),
            "averages": vars(self.averages).copy(),
            "optimizer": self.optimizer.state_dict(),
            "regularizers": self.regularizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "data": self.data.fingerprint,
        }
        save(self.model, path, training, self.metadata)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises CheckpointError or UserError, saying what does not fit."""
        content = load(path)
        if "training" not in content:
            raise CheckpointError(f"{path} is a model without a training state; continue from a .checkpoint file.")
        refuse_changes(self.config, content["config"], path)
        training = content["training"]
        if training.get("data") != self.data.fingerprint:
            raise UserError(
                f"the images of the data set {self.config.dataset.name} are not those that {path} was "
                "trained on; bring the old ones back, or start over with --fresh."
            )
        restore(self.model, content, path)
        self.metadata = content["metadata"]
        try:
            if "regularizers" in training:  # missing where an earlier version regularized other convolutions
                self.regularizers.load_state_dict(training["regularizers"])
            self.optimizer.load_state_dict(training["optimizer"])
            if training["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(training["scaler"])
            self.position = Position(**training["position"])
            self.averages = Averages(
                training["averages"]["images"],
                {key: mean.to(self.device) for key, mean in training["averages"]["means"].items()},
            )
            self._end_epoch_without_a_whole_batch()  # the batch size may have grown
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} holds the training state of other code ({error}); start over with --fresh, or use the program "
                "that wrote it."
            ) from error


def how_to_go_on(path: Path) -> str:
    """What to do after training went wrong."""
    return (
        f"{path} still holds those from before: go on from it with a lower learning_rate, a longer "
        "learning_rate_warmup_epochs or gradient_clipping, such as --set training_parameters.gradient_clipping=100."
    )


def refuse_changes(config: ModelConfig, saved: ModelConfig, path: Path) -> None:
    """Raise UserError when a config differs from a checkpoint's in more than the schedule, naming the keys."""
    now, then = flat(config.model_dump()), flat(saved.model_dump())
    keys = now | then  # those of two data sets differ
    changed = [key for key in keys if now.get(key) != then.get(key) and not is_changeable(key)]
    if changed:
        keys = ", ".join(f"{key} (was {then.get(key)}, is {now.get(key)})" for key in changed)
        raise UserError(
            f"the config has changed since {path} was made: {keys}; only dataset.path and the keys of "
            "training_parameters other than seed and spectral_scope may change in a run: change these back, or start "
            "over with --fresh."
        )
