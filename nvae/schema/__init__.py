"""The base class of every family's config, and the dataset and training sections.

Every field has a description: `nvae config` and docs/config.md are generated from the fields.
"""

# ruff: noqa: F401 (the names are for others to import from here)

from nvae.schema.datasets import (
    DATASETS,
    DatasetConfig,
    DownloadedDataset,
    DtdDataset,
    FolderDataset,
    LmdbDataset,
    NpzDataset,
    OmniglotDataset,
    PictureDataset,
    PublicPictureDataset,
    StackedMnistDataset,
    TfrecordDataset,
    ToyFacesDataset,
    ValidationChoice,
    dataset_class,
    select_dataset,
)
from nvae.schema.model import AUTO_KEYS, SELECTING_KEYS, ModelConfig
from nvae.schema.named_datasets import NAMED_DATASETS, NamedDataset
from nvae.schema.sections import AUTO, MAX_SIZE, Channels, PositiveRate, Rate, Section
from nvae.schema.training import RATE_WARMUPS, WARMUPS, LearningRateDecay, TrainingParameters
