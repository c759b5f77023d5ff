"""The base class of every family's config, and the dataset and training sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
# Far beyond any network, and near enough that what is meant to be a typo or a trap is not built.
Few = Annotated[int, Field(gt=0, le=100)]
FewOrNone = Annotated[int, Field(ge=0, le=100)]
Many = Annotated[int, Field(gt=0, le=10_000)]
NaturalInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NaturalFloat = Annotated[float, Field(ge=0)]

DatasetName = Literal["folder", "mnist", "fashion_mnist", "cifar10", "toy_faces"]
SamplingMethod = Literal[
    "bernoulli", "gaussian", "gaussian_mixture", "logistic", "logistic_mixture", "coupled_logistic_mixture"
]
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_portion")  # ways to say how long the KL's weight rises


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversions, no NaN or infinity, no changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DatasetConfig(Section):
    """Where the images come from. `path` is the folder of images, or where a downloaded set is kept."""

    name: DatasetName = "folder"
    path: str = "dataset"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of a folder's images
    training_images: Annotated[int, Field(gt=0, le=1_000_000_000)] = 6000  # toy_faces draws as many as one wants
    validation_images: PositiveInt = 300  # toy_faces
    # Width times height of one file; larger files are left out. Pillow itself refuses more than 178,956,970.
    max_image_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 64_000_000
    horizontal_flip: bool = False  # turn training images round, half of them
    binarize: bool = False  # subpixels are drawn, black or white, with their brightness as the probability


class TrainingParameters(Section):
    """The training schedule. All keys but `seed` may change between two runs of the same model."""

    optimizer: Literal["adamax", "adam", "adamw"] = "adamax"
    optimizer_epsilon: PositiveFloat = 1e-3
    optimizer_betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    learning_rate: PositiveFloat = 1e-2
    learning_rate_min: NaturalFloat = 1e-5
    learning_rate_warmup_epochs: NaturalFloat = 0.0
    learning_rate_decay: Literal["after_kl_warmup", "after_its_warmup"] = "after_kl_warmup"
    weight_decay: NaturalFloat = 3e-4
    regularization_constant: NaturalFloat = 0.0
    regularization_constant_initial: PositiveFloat | None = None
    kl_constant: NaturalFloat = 1.0
    kl_balancing: bool = True
    warmup_epochs: NaturalFloat = 30.0
    warmup_steps: NaturalInt | None = None
    warmup_portion: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_delay_portion: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 20
    write_reconstruction: bool = True
    images_per_checkpoint: PositiveInt | None = None
    epochs_per_checkpoint: PositiveInt | None = 2
    evaluation_samples: NaturalInt = 10
    gradient_clipping: PositiveFloat | None = None
    gradient_skip_threshold: PositiveFloat | None = None
    half_precision: bool = False
    use_tensor_checkpoints: bool = False
    seed: NaturalInt = 0


class ModelConfig(Section):
    """What the config of every family has: the images, the likelihood, the data and the training schedule."""

    family: str
    input_dimension: Many = 64
    image_channels: Literal[1, 3] = 3
    pixel_bits: Annotated[int, Field(ge=1, le=8)] = 8
    pixel_range: Literal["unit", "centered"] = "unit"
    sampling_method: SamplingMethod = "gaussian"
    n_mix: Annotated[int, Field(gt=0, le=1000)] = 3
    likelihood_tails: Literal["original", "exact"] = "original"
    dataset: DatasetConfig = DatasetConfig()
    training_parameters: TrainingParameters = TrainingParameters()
