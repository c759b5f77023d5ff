"""The keys of every family: the images, the likelihood, and the two sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from nvae.schema.datasets import AnyDataset, FolderDataset, select_dataset
from nvae.schema.sections import MAX_SIZE, Section
from nvae.schema.training import RATE_WARMUPS, WARMUPS, TrainingParameters

SamplingMethod = Literal[
    "bernoulli",
    "gaussian",
    "gaussian_mixture",
    "discretized_gaussian",
    "logistic",
    "logistic_mixture",
    "coupled_logistic_mixture",
]
CONTINUOUS = ("gaussian", "gaussian_mixture")  # likelihoods that are densities
SELECTING_KEYS = ("family", "dataset.name")  # their values decide which other keys exist
AUTO_KEYS = (
    "input_dimension",
    "image_channels",
    "pixel_bits",
    "sampling_method",
    "dataset.binarize",
    "dataset.horizontal_flip",
)


class ModelConfig(Section):
    """The keys of every family: the images, the likelihood, the data and the training schedule."""

    # Named sets of other defaults, which a key of a family selects: {"style": {"nvlabs": {"n_mix": 10}}}.
    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}

    family: str = Field(description="The architecture; a file without this key is of the family nvae.")
    input_dimension: Annotated[int, Field(ge=1, le=MAX_SIZE)] = Field(
        64, description="Width and height of the images; auto: the size of the data set's images."
    )
    image_channels: Literal[1, 3] = Field(3, description="3 for color, 1 for gray; auto: as the data set.")
    pixel_bits: Annotated[int, Field(ge=1, le=8)] = Field(
        8,
        description="Bits per subpixel: images have 2 to the power of this number of values; auto: as in publications "
        "on the data set.",
    )
    encoder_bits: Annotated[int, Field(ge=1, le=8)] | None = Field(
        None,
        description="Bits per subpixel of the images that the encoder sees, from pixel_bits on; null for pixel_bits.",
    )
    pixel_range: Literal["unit", "centered"] = Field(
        "unit", description="Range of the pixels that the network and a Gaussian likelihood see: [0, 1] or [-1, 1]."
    )
    sampling_method: SamplingMethod = Field(
        "gaussian",
        description="The likelihood of the pixels. bernoulli: binary or gray values as probabilities; gaussian and "
        "gaussian_mixture: continuous; discretized_gaussian, logistic, logistic_mixture: discretized, every subpixel "
        "by itself; "
        "coupled_logistic_mixture: discretized, the mean of green depends on red, of blue on both; auto: "
        "bernoulli for binarized images, else logistic_mixture.",
    )
    n_mix: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="Components of a mixture likelihood.")
    likelihood_tails: Literal["original", "exact"] = Field(
        "exact",
        description="Where the upper tail of a discretized logistic begins. exact: so that the probabilities of all "
        "values add up to 1; original: at 0.995, as in the original program and in files of earlier versions, where "
        "the value 254 of 8 bits gets the tail too, so bits/dim are no bound.",
    )
    dataset: AnyDataset = Field(FolderDataset(), description="The images.")
    training_parameters: TrainingParameters = Field(TrainingParameters(), description="The training schedule.")

    @model_validator(mode="after")
    def _consistent_with_images(self) -> ModelConfig:
        if self.sampling_method == "coupled_logistic_mixture" and self.image_channels != 3:
            channels = self.image_channels
            self.refuse("sampling_method", f"'bernoulli' or 'logistic_mixture' for images of {channels} channel")
        if self.training_parameters.beta_nll and self.sampling_method == "bernoulli":
            self.refuse("training_parameters.beta_nll", "0, because bernoulli has no scales")
        if self.dataset.binarize and self.sampling_method != "bernoulli":
            self.refuse("dataset.binarize", f"False, or sampling_method bernoulli instead of {self.sampling_method}")
        if self.dataset.dequantize and self.sampling_method not in CONTINUOUS:
            allowed = f"False, or sampling_method {' or '.join(CONTINUOUS)} instead of {self.sampling_method}"
            self.refuse("dataset.dequantize", allowed)
        if self.input_bits < self.pixel_bits:
            self.refuse("encoder_bits", f"null, or {self.pixel_bits}, the pixel_bits, to 8")
        self.dataset.check(self.input_dimension)
        return self

    @property
    def input_bits(self) -> int:
        """Bits per subpixel of the images that the encoder sees."""
        return self.pixel_bits if self.encoder_bits is None else self.encoder_bits

    def with_default(self, key: str, value: Any) -> ModelConfig:
        """Return the config with the value of a key, unless the file or an override has named the key."""
        return self if key in self.model_fields_set else self.model_copy(update={key: value})

    @classmethod
    def prepare_override(cls, data: dict[str, Any], key: str, value: Any) -> None:
        """Change the raw `data` of a file so that the dotted `key` can be set to `value`.

        Remove the keys that the new value replaces. A family also expands short forms that the key reaches into.
        """
        section, _, name = key.rpartition(".")
        schedule = data.get("training_parameters")
        ways = next((ways for ways in (WARMUPS, RATE_WARMUPS) if name in ways), ())
        if section == "training_parameters" and ways and value is not None and isinstance(schedule, dict):
            # The override replaces the file's way.
            data["training_parameters"] = {k: v for k, v in schedule.items() if k == name or k not in ways}
        if key == "dataset.name" and isinstance(data.get("dataset"), dict):
            data["dataset"] = select_dataset(data["dataset"], value)
