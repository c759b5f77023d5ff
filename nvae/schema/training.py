"""The training_parameters section: the training schedule."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from nvae.schema.sections import MAX_COUNT, MAX_SEED, Count, Epochs, Portion, PositiveRate, Rate, Section

OptimizerName = Literal[
    "adamax",
    "adam",
    "adamw",
    "muon",
]
LearningRateSchedule = Literal["cosine", "cosine_restarts", "cyclic", "constant", "plateau"]
LossScale = Literal["nats", "bits_per_dimension", "nats_per_dimension"]
Epsilon = Annotated[float, Field(ge=1e-12, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
LearningRateDecay = Literal["after_kl_warmup", "after_its_warmup", "from_start", "nvlabs"]
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_portion")  # three ways to give the length of the KL warm-up
RATE_WARMUPS = ("learning_rate_warmup_epochs", "learning_rate_warmup_steps")  # two, of the learning rate's warm-up


class TrainingParameters(Section):
    """The training schedule."""

    # Keys that may not change in a run.
    FIXED: ClassVar[frozenset[str]] = frozenset({"seed", "optimizer", "loss_scale"})

    optimizer: OptimizerName = Field(
        "adamax",
        description="The optimizer. The defaults of learning_rate and optimizer_epsilon suit adamax; the others need "
        "smaller ones, such as 1e-3 and 1e-8.",
    )
    optimizer_epsilon: Epsilon = Field(1e-3, description="Added to the denominator of the optimizer's update.")
    optimizer_betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999),
        strict=False,  # a list in YAML
        description="Decay rates of the optimizer's running means of the gradient and of its size.",
    )
    learning_rate: PositiveRate = Field(1e-2, description="Highest learning rate.")
    learning_rate_min: Rate = Field(
        1e-5, description="Lowest learning rate: at the end of the last epoch with the cosine, and with plateaus."
    )
    learning_rate_warmup_epochs: Rate = Field(
        0.0,
        description="Epochs of a linear rise from zero to learning_rate (the key warmup_epochs of the original NVAE).",
    )
    learning_rate_warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None,
        description="The rise in steps, with the rate 0 at the first one; replaces learning_rate_warmup_epochs.",
    )
    learning_rate_schedule: LearningRateSchedule = Field(
        "cosine",
        description="The learning rate after its warm-up: a cosine; a cosine that starts again after every "
        "learning_rate_period; down and up again on straight lines within every learning_rate_period; constant; or "
        "multiplied by plateau_factor whenever the validation ELBO has not improved for plateau_patience epochs.",
    )
    learning_rate_period: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        10.0, description="Epochs of one cosine of cosine_restarts, the first one, or of one cycle of cyclic."
    )
    learning_rate_period_factor: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Factor on the epochs of each further cosine of cosine_restarts."
    )
    learning_rate_update: Literal["step", "epoch"] = Field(
        "step", description="Change the learning rate at every step, or keep it constant within an epoch."
    )
    learning_rate_decay: LearningRateDecay = Field(
        "after_kl_warmup",
        description="Start of the cosine: after the KL warm-up, or after the learning rate's own; from_start: the "
        "cosine of all epochs, scaled so that it equals learning_rate at the end of the learning rate's warm-up; "
        "nvlabs: the cosine of the original NVAE, constant within an epoch and at learning_rate_min in the last epoch.",
    )
    plateau_patience: Epochs = Field(
        10,
        description="Epochs without a better validation ELBO before learning_rate_schedule: plateau lowers the rate.",
    )
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5,
        description="Factor on the learning rate with learning_rate_schedule: plateau; not below learning_rate_min.",
    )
    weight_decay: Rate = Field(3e-4, description="Weight decay of the optimizer.")
    regularization_constant: Rate = Field(0.0, description="Weight of the family's regularization terms; 0 for none.")
    regularization_constant_initial: PositiveRate | None = Field(
        None,
        description="Start of a geometric change to regularization_constant along the KL warm-up; null for no change.",
    )
    kl_constant: Rate = Field(
        1.0, description="Factor on the KL: above 1 for more coherent samples, below 1 for sharper reconstructions."
    )
    beta_nll: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Weights the gradient of every pixel by its predicted scale to this power, which falls linearly to "
        "0 at the end of the training (docs/training.md): 0 for none, up to 1.",
    )
    kl_balancing: bool = Field(
        True, description="Balance the KL across latent groups during the KL warm-up (NVAE, appendix A)."
    )
    warmup_epochs: Rate = Field(
        30.0,
        description="Epochs of the KL warm-up: the weight of the KL rises linearly to 1. In the original NVAE the key "
        "warmup_epochs is the learning rate's warm-up, here learning_rate_warmup_epochs.",
    )
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None, description="The KL warm-up in steps; replaces warmup_epochs."
    )
    warmup_portion: Portion | None = Field(
        None, description="The KL warm-up as a portion of all epochs; replaces warmup_epochs."
    )
    warmup_delay_portion: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Portion of all epochs before the KL warm-up begins."
    )
    kl_const_coeff: Annotated[float, Field(ge=1e-9, le=1)] = Field(
        1e-4, description="Smallest weight of the KL: before the KL warm-up, and at its start until the rise is above."
    )
    epochs: Epochs = Field(100, description="Passes over the training images.")
    max_steps_per_epoch: Count | None = Field(
        None,
        description="End an epoch after this number of steps, each epoch with other images; null for all images.",
    )
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(20, description="Images per step.")
    gradient_accumulation: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1,
        description="Number of equal parts of a batch that are computed one after another, to save memory. Batch norms "
        "and kl_balancing use the statistics of each part.",
    )
    loss_scale: LossScale = Field(
        "nats",
        description="Unit of the ELBO in the loss: nats per image, nats / number of subpixels, or that / ln 2 (bits). "
        "Gradients, and so gradient_clipping, gradient_skip_threshold and optimizer_epsilon, are in this unit.",
    )
    write_reconstruction: bool = Field(True, description="Draw reconstructions.png with every checkpoint.")
    images_per_checkpoint: Count | None = Field(
        None, description="Training images between two checkpoints; null for epochs_per_checkpoint alone."
    )
    epochs_per_checkpoint: Epochs | None = Field(
        2, description="Epochs between two checkpoints, each with a validation and pictures; null for none."
    )
    keep_every: Epochs | None = Field(
        None,
        description="Epochs between two checkpoints that are kept as copies, saved_weights/NAME.epoch_0012.checkpoint "
        "after epoch 12; null for none.",
    )
    keep_best: bool = Field(
        True, description="Keep the checkpoint of the best validation ELBO, as saved_weights/NAME.best.checkpoint."
    )
    evaluate_quality_every: Epochs | None = Field(
        None,
        description="Epochs between two measurements of FID(self), precision and recall of 1,000 samples, each with a "
        "checkpoint; the checkpoint of the lowest FID(self) is kept as saved_weights/NAME.best_fid.checkpoint if "
        "keep_best is on (docs/metrics.md); null for none.",
    )
    evaluation_samples: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10,
        description="Importance samples per image in the final evaluation, on the test images or else the validation "
        "images; 0 for no evaluation.",
    )
    gradient_clipping: PositiveRate | None = Field(
        None, description="Largest norm of the gradient, larger ones are scaled down; null for no clipping."
    )
    gradient_skip_threshold: PositiveRate | None = Field(
        None, description="Skip a step whose gradient norm is larger; null to skip only steps that are not finite."
    )
    skip_high_losses: bool = Field(
        True, description="Skip a step whose loss is far above the losses of the last 200 steps (docs/training.md)."
    )
    max_recoveries: Annotated[int, Field(ge=0, le=100)] = Field(
        3,
        description="How often a training that diverges goes back to its last checkpoint and tries again, each time "
        "with a lower learning rate, before it ends; 0 to end at once.",
    )
    half_precision: bool = Field(
        False,
        description="Train in bfloat16, or in float16 with a scaled loss on devices without bfloat16. No effect on a "
        "CPU without AMX instructions, on which float32 is faster.",
    )
    deterministic: bool = Field(
        False,
        description="On a GPU: only algorithms that give the same numbers every time, so that a continued run equals "
        "an uninterrupted one bit for bit; slower. A CPU always does.",
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="auto: on a CUDA GPU, the gradient of a step is recorded once as a CUDA graph and replayed, which "
        "changes no number. true: the forward and the backward pass are also compiled by torch.compile, on every "
        "device, which takes minutes at the start. false: neither (docs/training.md).",
    )
    sync_batch_norm: bool = Field(
        True,
        description="With several processes: batch norms use the statistics of the images of all processes; false for "
        "those of each process alone, which is faster.",
    )
    use_tensor_checkpoints: bool = Field(
        False,
        description="Activation checkpointing: a quarter of the memory for a third more time; no number changes.",
    )
    early_stopping_patience: Epochs | None = Field(
        None,
        description="Stop when the validation ELBO has not improved for this number of epochs, and keep the weights of "
        "the best validation as the result; null to train all epochs.",
    )
    ema_decay: Decay | None = Field(
        None,
        description="Decay of the exponential moving average (EMA) of the weights, such as 0.999: the part that stays "
        "at every step. Validation, pictures and the result use the average; null for none.",
    )
    workers: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Threads that decode the picture files of a data set; null for one per CPU core."
    )
    wandb: Literal["offline", "online"] | None = Field(
        None,
        description="Record the run with Weights & Biases, in the run's folder or also online; needs the extra wandb; "
        "null for no record.",
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(
        0, description="Seed of the weights, the order of the images and all noise."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingParameters:
        if self.learning_rate_min > self.learning_rate:
            self.refuse("learning_rate_min", f"at most learning_rate, {self.learning_rate:g}")
        if self.epochs_per_checkpoint is None and self.images_per_checkpoint is None:
            needed = "or epochs_per_checkpoint for validations during the training"
            if self.early_stopping_patience is not None:
                self.refuse("early_stopping_patience", f"null, {needed}")
            if self.learning_rate_schedule == "plateau":
                self.refuse("learning_rate_schedule", f"cosine, {needed}")
        if self.learning_rate_decay == "nvlabs" and self.learning_rate_schedule != "cosine":
            self.refuse(
                "learning_rate_decay", f"another value with learning_rate_schedule {self.learning_rate_schedule}"
            )
        if self.batch_size % self.gradient_accumulation:
            self.refuse("gradient_accumulation", f"a divisor of batch_size, {self.batch_size}")
        if self.warmup_steps is not None and self.warmup_portion is not None:
            self.refuse("warmup_steps", f"null, because warmup_portion {self.warmup_portion:g} is given too")
        return self

    def of_one_epoch(self) -> TrainingParameters:
        """Return the schedule of a training whose only epoch ends with all that a checkpoint and a result have.

        The quality of samples is left out: its measurement trains a network of its own.
        """
        changes = {
            "epochs": 1,
            "epochs_per_checkpoint": 1,
            "images_per_checkpoint": None,
            "keep_every": 1,
            "evaluate_quality_every": None,
            "evaluation_samples": min(self.evaluation_samples, 2),
            "wandb": None,
        }
        return self.model_copy(update=changes)
