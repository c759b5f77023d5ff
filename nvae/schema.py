"""The base class of every family's config, and the dataset and training sections.

Every field has a description: `nvae config` and docs/config.md are generated from the fields. Every number has a
bound: larger than any real use, small enough to reject typing errors and hostile files before a model is built.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Union, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nvae.errors import InvalidValueError

MAX_COUNT = 10**9  # images and steps
MAX_RATE = 1e6  # learning rates and other factors: float32 optimizers overflow far above
MAX_SEED = 2**63 - 1  # torch's generators take 64 bits
MAX_DRAWN_BYTES = 2**32  # of images that the program draws into memory

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[float, Field(ge=0, le=MAX_RATE)]
PositiveRate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Portion = Annotated[float, Field(ge=0, le=1)]
PathText = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no file name holds a zero character

SamplingMethod = Literal[
    "bernoulli",
    "gaussian",
    "gaussian_mixture",
    "logistic",
    "logistic_mixture",
    "coupled_logistic_mixture",
]
OptimizerName = Literal[
    "adamax",
    "adam",
    "adamw",
]
LearningRateDecay = Literal["after_kl_warmup", "after_its_warmup", "from_start"]
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_portion")  # three ways to give the length of the KL warm-up
SELECTING_KEYS = ("family", "dataset.name")  # their values decide which other keys exist


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversions, no NaN or infinity, no changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    ALLOWED: ClassVar[str] = "a section of 'key: value' lines"  # how messages and the reference call its values


# ---------------------------------------------------------------------------------------------------- data sets


class DatasetConfig(Section):
    """The keys that every data set has."""

    horizontal_flip: bool = Field(False, description="Mirror each training image with probability 0.5.")
    binarize: bool = Field(
        False,
        description="Draw every subpixel as 0 or 1 with its brightness as the probability: training images at every "
        "step, validation images once. Needs sampling_method: bernoulli.",
    )
    encoder_input: Literal["binary", "gray"] = Field(
        "binary",
        description="The encoder's images with binarize: true: the binary images, or the gray images they are drawn "
        "from. The likelihood is always of the binary images. Without binarize only binary is allowed, without effect.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DatasetConfig:
        if self.encoder_input == "gray" and not self.binarize:
            raise InvalidValueError("encoder_input", "gray", "'binary', or binarize True")
        return self

    def check(self, input_dimension: int) -> None:
        """Raise InvalidValueError for keys that do not suit images of this size."""


class FolderDataset(DatasetConfig):
    """The pictures of a folder."""

    name: Literal["folder"] = Field("folder", description="Pictures of a folder and its subfolders.")
    path: PathText = Field("dataset", description="The folder.")
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Fraction of the pictures that is kept for validation, chosen by file name."
    )
    max_image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = Field(  # Pillow itself refuses larger files
        64_000_000, description="Leave out files of more pixels (width times height)."
    )


class DownloadedDataset(DatasetConfig):
    """A public data set, downloaded where absent."""

    name: Literal["mnist", "fashion_mnist", "cifar10"] = Field(description="The data set.")
    path: PathText = Field("dataset", description="Folder of the files, downloaded into the folder when absent.")
    validation_images: Count | None = Field(
        None,
        description="Number of training images that are kept for validation, so that the test images stay apart for "
        "the final evaluation; null to validate on the test images.",
    )
    split_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(
        0, description="Seed of the choice of the validation_images."
    )


class OmniglotDataset(DownloadedDataset):
    """Handwritten characters of 50 alphabets (Lake et al. 2015), downloaded where absent."""

    name: Literal["omniglot"] = Field(description="Handwritten characters.")
    version: Literal["chardata", "torchvision"] = Field(
        "chardata",
        description="chardata: the 28x28 images of Burda et al. (2015), as in most publications on VAEs; needs the "
        "extra omniglot. torchvision: the original drawings and split, 105x105, resized.",
    )


class ToyFacesDataset(DatasetConfig):
    """Cartoon faces, drawn from their index at any size."""

    name: Literal["toy_faces"] = Field(description="Cartoon faces that the program draws.")
    training_images: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        6000, description="Number of faces for training."
    )
    validation_images: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        300, description="Number of faces for validation."
    )

    def check(self, input_dimension: int) -> None:
        most = MAX_DRAWN_BYTES // (3 * input_dimension**2)
        for key in ("training_images", "validation_images"):
            if (images := getattr(self, key)) > most:
                raise InvalidValueError(
                    f"dataset.{key}", images, f"at most {most} with input_dimension {input_dimension}"
                )


DATASET_CLASSES = (
    FolderDataset,
    DownloadedDataset,
    OmniglotDataset,
    ToyFacesDataset,
)
DATASETS: dict[str, type[DatasetConfig]] = {
    name: dataset for dataset in DATASET_CLASSES for name in get_args(dataset.model_fields["name"].annotation)
}


def dataset_class(section: dict[str, Any]) -> type[DatasetConfig] | None:
    """Return the class of a dataset section; None if its name is no data set."""
    name = section.get("name", "folder")
    return DATASETS.get(name) if isinstance(name, str) else None


def _folder_by_default(section: Any) -> Any:
    return {"name": "folder"} | section if isinstance(section, dict) else section


AnyDataset = Annotated[
    Union[DATASET_CLASSES],  # noqa: UP007 (of a tuple)
    Field(discriminator="name"),
    BeforeValidator(_folder_by_default),
]


def select_dataset(section: dict[str, Any], name: Any) -> dict[str, Any]:
    """Return a dataset section with another `name`; of the other keys, only the keys of every data set stay."""
    if section.get("name", "folder") == name:
        return section
    return {key: value for key, value in section.items() if key in DatasetConfig.model_fields} | {"name": name}


# ---------------------------------------------------------------------------------------------------- training


class TrainingParameters(Section):
    """The training schedule."""

    # Keys that may not change in a run.
    FIXED: ClassVar[frozenset[str]] = frozenset({"seed", "optimizer", "loss_scale"})

    optimizer: OptimizerName = Field(
        "adamax",
        description="The optimizer. The defaults of learning_rate and optimizer_epsilon suit adamax; the others need "
        "smaller ones, such as 1e-3 and 1e-8.",
    )
    optimizer_epsilon: Annotated[float, Field(ge=1e-12, le=1)] = Field(
        1e-3, description="Added to the denominator of the optimizer's update."
    )
    optimizer_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
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
    learning_rate_schedule: Literal["cosine", "constant", "plateau"] = Field(
        "cosine",
        description="The learning rate after its warm-up: a cosine, constant, or multiplied by plateau_factor whenever "
        "the validation ELBO has not improved for plateau_patience epochs.",
    )
    learning_rate_update: Literal["step", "epoch"] = Field(
        "step", description="Change the learning rate at every step, or keep it constant within an epoch."
    )
    learning_rate_decay: LearningRateDecay = Field(
        "after_kl_warmup",
        description="Start of the cosine: after the KL warm-up, or after the learning rate's own; from_start: the "
        "cosine of all epochs, scaled so that it equals learning_rate at the end of the learning rate's warm-up.",
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
    epochs: Epochs = Field(100, description="Passes over the training images.")
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(20, description="Images per step.")
    gradient_accumulation: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        1,
        description="Number of equal parts of a batch that are computed one after another, to save memory. Batch norms "
        "and kl_balancing use the statistics of each part.",
    )
    loss_scale: Literal["nats", "bits_per_dimension"] = Field(
        "nats",
        description="Unit of the ELBO in the loss: nats per image, or nats / (ln 2 x number of subpixels). "
        "Gradients, and so gradient_clipping, gradient_skip_threshold and optimizer_epsilon, are in this unit.",
    )
    write_reconstruction: bool = Field(True, description="Draw reconstructions.png with every checkpoint.")
    images_per_checkpoint: Count | None = Field(
        None, description="Training images between two checkpoints; null for epochs_per_checkpoint alone."
    )
    epochs_per_checkpoint: Epochs | None = Field(
        2, description="Epochs between two checkpoints, each with a validation and pictures; null for none."
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
    half_precision: bool = Field(
        False, description="Train in bfloat16, or in float16 with a scaled loss on devices without bfloat16."
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
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Decay of the exponential moving average (EMA) of the weights, such as 0.999: the part that stays "
        "at every step. Validation, pictures and the result use the average; null for none.",
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
            raise InvalidValueError(
                "learning_rate_min", self.learning_rate_min, f"at most learning_rate, {self.learning_rate:g}"
            )
        if self.epochs_per_checkpoint is None and self.images_per_checkpoint is None:
            for key, off in (("early_stopping_patience", None), ("learning_rate_schedule", "cosine")):
                if (value := getattr(self, key)) not in (off, "constant"):
                    raise InvalidValueError(
                        key, value, f"{off or 'null'}, or epochs_per_checkpoint for validations during the training"
                    )
        if self.batch_size % self.gradient_accumulation:
            raise InvalidValueError(
                "gradient_accumulation", self.gradient_accumulation, f"a divisor of batch_size, {self.batch_size}"
            )
        if self.warmup_steps is not None and self.warmup_portion is not None:
            raise InvalidValueError(
                "warmup_steps", self.warmup_steps, f"null, because warmup_portion {self.warmup_portion:g} is given too"
            )
        return self


# ---------------------------------------------------------------------------------------------------- models


class ModelConfig(Section):
    """The keys of every family: the images, the likelihood, the data and the training schedule."""

    # Named sets of other defaults, which a key of a family selects: {"style": {"nvlabs": {"n_mix": 10}}}.
    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}

    family: str = Field(description="The architecture; a file without this key is of the family nvae.")
    input_dimension: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="Width and height of the images.")
    image_channels: Literal[1, 3] = Field(3, description="3 for color, 1 for gray.")
    pixel_bits: Annotated[int, Field(ge=1, le=8)] = Field(
        8, description="Bits per subpixel: images have 2 to the power of this number of values."
    )
    pixel_range: Literal["unit", "centered"] = Field(
        "unit", description="Range of the pixels that the network and a Gaussian likelihood see: [0, 1] or [-1, 1]."
    )
    sampling_method: SamplingMethod = Field(
        "gaussian",
        description="The likelihood of the pixels. bernoulli: binary or gray values as probabilities; gaussian and "
        "gaussian_mixture: continuous; logistic and logistic_mixture: discretized, every subpixel by itself; "
        "coupled_logistic_mixture: discretized, the mean of green depends on red, of blue on both.",
    )
    n_mix: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="Components of a mixture likelihood.")
    likelihood_tails: Literal["original", "exact"] = Field(
        "original",
        description="Where the upper tail of a discretized logistic begins: as in the original program, or so that the "
        "probabilities of all values add up to 1.",
    )
    dataset: AnyDataset = Field(FolderDataset(), description="The images.")
    training_parameters: TrainingParameters = Field(TrainingParameters(), description="The training schedule.")

    @model_validator(mode="after")
    def _consistent_with_images(self) -> ModelConfig:
        if self.sampling_method == "coupled_logistic_mixture" and self.image_channels != 3:
            raise InvalidValueError(
                "sampling_method",
                self.sampling_method,
                f"'bernoulli' or 'logistic_mixture' for images of {self.image_channels} channel",
            )
        if self.dataset.binarize and self.sampling_method != "bernoulli":
            raise InvalidValueError(
                "dataset.binarize", True, f"False, or sampling_method bernoulli instead of {self.sampling_method}"
            )
        self.dataset.check(self.input_dimension)
        return self

    @classmethod
    def prepare_override(cls, data: dict[str, Any], key: str, value: Any) -> None:
        """Change the raw `data` of a file so that the dotted `key` can be set to `value`.

        Remove the keys that the new value replaces. A family also expands short forms that the key reaches into.
        """
        section, _, name = key.rpartition(".")
        schedule = data.get("training_parameters")
        if section == "training_parameters" and name in WARMUPS and isinstance(schedule, dict):
            # The override replaces the file's way.
            data["training_parameters"] = {k: v for k, v in schedule.items() if k == name or k not in WARMUPS}
        if key == "dataset.name" and isinstance(data.get("dataset"), dict):
            data["dataset"] = select_dataset(data["dataset"], value)
