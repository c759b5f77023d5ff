"""The public data sets that a config can name: what is known about each without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml


class NamedDataset(NamedTuple):
    """Facts about a data set. A part without published images has 0 images.

    binarize, horizontal_flip and pixel_bits are the literature's choice for generative models of this data set, which
    a config takes with the value `auto`: those of NVAE (Vahdat and Kautz 2020) for the sets of its experiments and its
    program (mnist, omniglot, cifar10, celeba, celeba_hq, ffhq, imagenet32, imagenet64, lsun). Natural images of other
    sets are mirrored too; textures, digits and medical images are not.
    """

    title: str
    channels: int
    size: int  # width and height, of the images or, for pictures of other sizes, usual in the literature
    training: int = 0
    validation: int = 0
    test: int = 0
    license: str = ""
    homepage: str = ""
    binarize: bool = False
    horizontal_flip: bool = False
    pixel_bits: int = 8
    keys: Literal["arrays", "pictures", "own"] = "arrays"  # of the config: those of all arrays, of all pictures, or own
    extra: str | None = None  # of this package, which the data set needs
    made_of: str = ""  # the data set whose files these are, if not its own
    files: dict[str, dict[str, Any]] = {}  # by part or role, see `source_files` of nvae/data/sources.py


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where PyYAML has it: the file is read at every start
NAMED_DATASETS = {
    name: NamedDataset(**facts)
    for name, facts in yaml.load(Path(__file__).with_suffix(".yaml").read_text("utf-8"), _LOADER).items()
}
