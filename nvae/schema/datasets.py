"""The dataset section: one class of keys for every kind of data set."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from PIL import ImageColor
from pydantic import BeforeValidator, Field, model_validator

from nvae.schema.named_datasets import NAMED_DATASETS
from nvae.schema.sections import AUTO, MAX_SEED, MAX_SIZE, Count, PathText, Section
from nvae.system.errors import InvalidValueError

MAX_DRAWN_BYTES = 2**32  # of images that the program draws into memory
MAX_NUMPY_SEED = 2**32 - 1

Percent = Annotated[float, Field(ge=0, le=100)]
ColorWidth = Annotated[float, Field(ge=0, le=1)]
ValidationChoice = Literal["random", "numpy_first", "numpy_last", "last"]
ValidationFraction = Annotated[float, Field(gt=0, lt=1)]
ArrayName = Literal[tuple(name for name, facts in NAMED_DATASETS.items() if facts.keys == "arrays")]  # type: ignore
PictureName = Literal[tuple(name for name, facts in NAMED_DATASETS.items() if facts.keys == "pictures")]  # type: ignore
LsunCategory = Literal[
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
]


class DatasetConfig(Section):
    """The keys that every data set has."""

    horizontal_flip: bool = Field(
        False,
        description="Mirror each training image with probability 0.5; auto: as in publications on the data set.",
    )
    random_crop: Annotated[int, Field(ge=0, le=MAX_SIZE)] = Field(
        0,
        description="Move each training image by up to this number of pixels in both directions, with reflected edges, "
        "as padding and a random crop do; 0 for none.",
    )
    sharpness: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None,
        description="Change the sharpness of each training image by this factor with probability 0.5: below 1 blurs, "
        "above 1 sharpens; null for none.",
    )
    color_jitter: tuple[ColorWidth, ColorWidth, ColorWidth, Annotated[float, Field(ge=0, le=0.5)]] | None = Field(
        None,
        strict=False,  # a list in YAML
        description="Change the colors of each training image, [brightness, contrast, saturation, hue]: by factors "
        "from 1 - width to 1 + width, and by up to this part of a turn of the hue; null for none.",
    )
    binarize: bool = Field(
        False,
        description="Draw every subpixel as 0 or 1 with its brightness as the probability: training images at every "
        "step, validation images once. Needs sampling_method: bernoulli. auto: as in publications on the data set.",
    )
    encoder_input: Literal["binary", "gray"] = Field(
        "binary",
        description="The encoder's images with binarize: true: the binary images, or the gray images they are drawn "
        "from. The likelihood is always of the binary images. Without binarize only binary is allowed, without effect.",
    )

    dequantize: bool = Field(
        False,
        description="Add uniform noise, as wide as one value, to the images of the likelihood: to training images at "
        "every step, to others with a fixed seed. The bits per dimension of a continuous likelihood are then a bound "
        "for the values themselves. Needs sampling_method: gaussian or gaussian_mixture.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DatasetConfig:
        if self.encoder_input == "gray" and not self.binarize:
            self.refuse("encoder_input", "'binary', or binarize True")
        return self

    def check(self, input_dimension: int) -> None:
        """Raise InvalidValueError for keys that do not suit images of this size."""
        if self.random_crop >= input_dimension:
            raise InvalidValueError(
                "dataset.random_crop", self.random_crop, f"less than input_dimension, {input_dimension}"
            )


class HeldOutDataset(DatasetConfig):
    """The keys of data sets whose training images can be split."""

    validation_images: Count | None = Field(
        None,
        description="Number of training images that are kept for validation; the test images, or else the validation "
        "images of the files, are then the test part. null for the validation images of the files, or else the test "
        "images, or else validation_fraction of the images.",
    )
    validation_choice: ValidationChoice = Field(
        "random",
        description="Which training images are the validation_images. random: by this program's random numbers; "
        "numpy_first, numpy_last: the first or last ones of numpy.random.RandomState(split_seed).permutation(N), as in "
        "many published programs; last: the last ones of the N training images. Training and validation images keep "
        "their order.",
    )
    split_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(
        0, description="Seed of the choice of the validation_images; without effect on the choice last."
    )

    @model_validator(mode="after")
    def _valid_choice(self) -> HeldOutDataset:
        choice = self.validation_choice
        if choice != "random" and self.validation_images is None:
            self.refuse("validation_choice", "'random', or a number of validation_images")
        if choice in ("numpy_first", "numpy_last") and self.split_seed > MAX_NUMPY_SEED:
            self.refuse("split_seed", f"at most {MAX_NUMPY_SEED:,} with validation_choice '{choice}'")
        return self


class PictureDataset(DatasetConfig):
    """The keys of data sets that are decoded from picture files."""

    crop: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Count, Count] | None = Field(
        None,
        strict=False,  # a list in YAML
        description="The part of every picture that is used, [left, top, width, height] in pixels, such as "
        "[15, 40, 148, 148] for the pictures of CelebA as in NVAE; null for the whole picture. Pictures without this "
        "part are left out.",
    )
    fit: Literal["crop", "crop_anywhere", "pad", "stretch"] = Field(
        "crop",
        description="How a picture becomes square: crop the longer side at its center, or at a place that the "
        "picture's name decides; pad the shorter side with the background, or stretch.",
    )
    resampling: Literal["lanczos", "bilinear"] = Field(
        "lanczos", description="The filter that resizes pictures; bilinear is that of NVAE's program."
    )
    background: str = Field("white", description="Color behind transparent pixels and of padding: a name or #rrggbb.")
    percentiles: tuple[Percent, ...] | None = Field(
        None,
        strict=False,  # a list in YAML
        description="Percentiles of a picture's values that become black and white, such as [1, 99] for X-rays, in "
        "pictures of more than 8 bits; null for the lowest and the highest value.",
    )
    max_image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = Field(  # Pillow itself refuses larger files
        64_000_000, description="Leave out files of more pixels (width times height)."
    )
    min_image_size: Annotated[int, Field(ge=1, le=MAX_SIZE)] = Field(
        1, description="Leave out pictures whose width or height is smaller, in pixels."
    )

    @model_validator(mode="after")
    def _valid_pictures(self) -> PictureDataset:
        if self.percentiles is not None and (len(self.percentiles) != 2 or self.percentiles[0] >= self.percentiles[1]):
            self.refuse("percentiles", "two numbers, the lower one first, such as [1, 99], or null")
        if not _is_color(self.background):
            self.refuse("background", "the English name of a color, or #rrggbb")
        return self


def _is_color(text: str) -> bool:
    try:
        return bool(re.fullmatch("[A-Za-z]+|#[0-9A-Fa-f]{6}", text) and ImageColor.getrgb(text))
    except ValueError:  # no name that Pillow knows
        return False


class FolderDataset(PictureDataset, HeldOutDataset):
    """Pictures of a folder or an archive."""

    name: Literal["folder"] = Field("folder", description="Pictures of a folder and its subfolders, or of an archive.")
    path: PathText = Field("dataset", description="The folder, or a zip or tar archive.")
    validation_fraction: ValidationFraction = Field(
        0.05,
        description="Fraction of the pictures that is kept for validation, chosen by file name. Without effect on a "
        "folder with the subfolders train and val, and with validation_images.",
    )


class LmdbDataset(PictureDataset):
    """Pictures of two LMDB databases, train.lmdb and validation.lmdb, as the original NVAE has them."""

    name: Literal["lmdb"] = Field(description="Pictures of LMDB databases; needs the extra lmdb.")
    path: PathText = Field("dataset", description="The folder of train.lmdb and validation.lmdb.")


class TfrecordDataset(PictureDataset, HeldOutDataset):
    """Pictures in TFRecord files, as Glow's data sets have them."""

    name: Literal["tfrecord"] = Field(description="Pictures in TFRecord files.")
    path: PathText = Field("dataset", description="A .tfrecords file, or a folder of such files.")
    validation_fraction: ValidationFraction = Field(
        0.05,
        description="Fraction of the pictures that is kept for validation, chosen by position. Without effect where "
        "files for validation or test exist, and with validation_images.",
    )


class NpzDataset(HeldOutDataset):
    """Arrays of images in .npz or .npy files."""

    name: Literal["npz"] = Field(description="Arrays of images in files of NumPy.")
    path: PathText = Field(
        "dataset.npz",
        description="The .npz or .npy file with uint8 images (N, H, W[, C]), or a folder with one such file for each "
        "part, such as train.npy and test.npy.",
    )
    validation_fraction: ValidationFraction = Field(
        0.05,
        description="Fraction of the images that is kept for validation, chosen by position. Without effect on "
        "arrays for both parts, and with validation_images.",
    )


class DownloadedDataset(HeldOutDataset):
    """A public data set, downloaded where absent."""

    name: ArrayName = Field(description="The data set.")  # type: ignore[valid-type]
    path: PathText | None = Field(
        None,
        description="Folder of the files, downloaded into the folder when absent; null for dataset/NAME, such as "
        "dataset/mnist.",
    )
    validation_images: Count | None = Field(
        None,
        description="Number of training images that are kept for validation, so that the test images stay apart for "
        "the final evaluation; null for the published validation images, or else the test images.",
    )


class OmniglotDataset(DownloadedDataset):
    """Handwritten characters of 50 alphabets (Lake et al. 2015), downloaded where absent."""

    name: Literal["omniglot"] = Field(description="Handwritten characters.")
    version: Literal["chardata", "torchvision"] = Field(
        "chardata",
        description="chardata: the 28x28 images of Burda et al. (2015), as in most publications on VAEs; needs the "
        "extra omniglot. torchvision: the original drawings and split, 105x105, resized.",
    )


class EmnistDataset(DownloadedDataset):
    """Handwritten letters and digits (Cohen et al. 2017), downloaded where absent."""

    name: Literal["emnist"] = Field(description="Handwritten letters and digits.")
    version: Literal["balanced", "byclass", "bymerge", "letters", "digits", "mnist"] = Field(
        "balanced", description="The published subset."
    )


class StackedMnistDataset(DownloadedDataset):
    """Three random digits of MNIST as the channels of an image (Metz et al. 2017), made of the files of mnist."""

    name: Literal["stacked_mnist"] = Field(description="Three digits of MNIST as the channels of an image.")
    training_images: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        128_000, description="Number of images, of training digits; 128,000 in Lin et al. (2018)."
    )
    test_images: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        26_000, description="Number of images for the test, of test digits."
    )
    stack_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(0, description="Seed of the choice of the digits.")


class SvhnDataset(DownloadedDataset):
    """House numbers (Netzer et al. 2011), downloaded where absent."""

    name: Literal["svhn"] = Field(description="House numbers; needs the extra svhn.")
    extra: bool = Field(False, description="Also train on the 531,131 simpler images of the part 'extra'.")


class PublicPictureDataset(PictureDataset, DownloadedDataset):
    """A public data set of picture files, downloaded where possible."""

    name: PictureName = Field(description="The data set.")  # type: ignore[valid-type]


class DtdDataset(PublicPictureDataset):
    """Textures (Cimpoi et al. 2014), downloaded where absent."""

    name: Literal["dtd"] = Field(description="Textures.")
    partition: Annotated[int, Field(ge=1, le=10)] = Field(1, description="The published split, one of ten.")


class LsunDataset(PublicPictureDataset):
    """Scenes (Yu et al. 2015): one class, in the LMDB databases CLASS_train_lmdb and CLASS_val_lmdb."""

    name: Literal["lsun"] = Field(description="Scenes of one class; needs the extra lmdb.")
    category: LsunCategory = Field("bedroom", description="The class.")


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
        super().check(input_dimension)
        most = MAX_DRAWN_BYTES // (3 * input_dimension**2)
        for key in ("training_images", "validation_images"):
            if (images := getattr(self, key)) > most:
                raise InvalidValueError(
                    f"dataset.{key}", images, f"at most {most} with input_dimension {input_dimension}"
                )


def _folder_by_default(section: Any) -> Any:
    return {"name": "folder"} | section if isinstance(section, dict) else section


AnyDataset = Annotated[
    FolderDataset
    | LmdbDataset
    | NpzDataset
    | TfrecordDataset
    | ToyFacesDataset
    | DownloadedDataset
    | OmniglotDataset
    | EmnistDataset
    | StackedMnistDataset
    | SvhnDataset
    | PublicPictureDataset
    | DtdDataset
    | LsunDataset,
    Field(discriminator="name"),
    BeforeValidator(_folder_by_default),
]
DATASETS: dict[str, type[DatasetConfig]] = {
    name: dataset
    for dataset in get_args(get_args(AnyDataset)[0])
    for name in get_args(dataset.model_fields["name"].annotation)
}


def dataset_class(section: dict[str, Any]) -> type[DatasetConfig] | None:
    """Return the class of a dataset section; None if its name is no data set."""
    name = section.get("name", "folder")
    return DATASETS.get(name) if isinstance(name, str) else None


def select_dataset(section: dict[str, Any], name: Any) -> dict[str, Any]:
    """Return a dataset section with another `name`.

    Of the other keys, only the keys of every data set stay, and of these the augmentation only where it is `auto`.
    """
    if section.get("name", "folder") == name:
        return section
    # Suits one data set and not another, such as mirrored digits.
    augmentation = ("horizontal_flip", "random_crop", "sharpness", "color_jitter")
    kept = {
        key: value
        for key, value in section.items()
        if key in DatasetConfig.model_fields and (key not in augmentation or value == AUTO)
    }
    return kept | {"name": name}
