"""Files of reference statistics: .npz files with a mean and a covariance, as other programs keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvae.data.arrays import ArrayFile
from nvae.evaluation.quality.distances import FeatureStatistics
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.system.errors import UserError, error_of_system
from nvae.system.files import atomic_write

NAMES = (("mu", "sigma"), ("m", "s"))  # of the mean and of the covariance
FACTS = "facts"
TOLERANCE = 1e-4  # of a covariance, relative to its largest value: files of float32 round
RANK_TOLERANCE = 1e-9  # of a variance that counts for the rank, relative to the largest


def write_statistics(path: Path, statistics: FeatureStatistics, facts: dict[str, Any]) -> None:
    """Write mu (D,) and sigma (D, D), float64, and facts as a JSON text. Raises WriteError."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy(), facts=np.array(json.dumps(facts))
        )


def read_statistics(path: Path, extractor: Extractor) -> tuple[FeatureStatistics, dict[str, Any]]:
    """Read statistics of an extractor's features: of this program, or any .npz file with mu and sigma, or m and s.

    Also returns the facts, empty for a file of another program. Runs no code from the file. Raises UserError for other
    files, and where the file names another extractor.
    """
    if not path.is_file():  # a pipe would block forever
        problem = "is no regular file" if path.exists() else "does not exist"
        raise UserError(f"the file of statistics '{path}' {problem}.")
    ArrayFile(path, "Use another file.")  # refuses a header that would fill the memory
    try:
        with np.load(path, allow_pickle=False) as content:
            names = next((names for names in NAMES if set(names) <= set(content.files)), None)
            if names is None:
                raise UserError(f"'{path}' has the arrays {content.files}, expected mu and sigma. Use another file.")
            arrays = [content[name] for name in names]
            if any(array.dtype.kind not in "fiu" for array in arrays):
                raise UserError(f"'{path}' has arrays that are not of real numbers. Use another file.")
            mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
            facts = json.loads(str(content[FACTS])) if FACTS in content.files else {}
            json.dumps(facts, allow_nan=False)  # refuses NaN and Infinity, which are not JSON
    except UserError:
        raise
    except Exception as error:  # zipfile and NumPy raise almost any exception for a damaged file
        if (cause := error_of_system(error)) is not None:
            raise UserError(f"'{path}' cannot be read: {cause.strerror}.") from error
        raise UserError(f"'{path}' is damaged, or is no .npz file of statistics. Use another file.") from error
    if mean.shape != (extractor.dimensions,) or covariance.shape != (extractor.dimensions,) * 2:
        raise UserError(
            f"'{path}' has statistics of shapes {tuple(mean.shape)} and {tuple(covariance.shape)}, expected "
            f"{extractor.dimensions} dimensions of the extractor {extractor.name}. Name the extractor of the file."
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"'{path}' has numbers that are not finite. Use another file.")
    tolerance = TOLERANCE * covariance.abs().max()
    asymmetry, variances = (covariance - covariance.T).abs().max(), torch.linalg.eigvalsh(covariance)
    if asymmetry > tolerance or variances.min() < -tolerance:
        raise UserError(f"'{path}' has a sigma that is not symmetric and positive, so no covariance. Use another file.")
    facts = facts if isinstance(facts, dict) else {}
    of = facts.get("extractor")
    if isinstance(of, dict) and (of.get("name"), of.get("digest")) != (extractor.name, extractor.digest):
        raise UserError(
            f"'{path}' has statistics of the extractor {of.get('name')}, digest {of.get('digest')}, expected "
            f"{extractor.name}, digest {extractor.digest}. Use the same extractor and the same weights."
        )
    images = facts.get("images")
    if type(images) is not int:
        images = int((variances > RANK_TOLERANCE * variances.max()).sum()) + 1
    return FeatureStatistics(mean, covariance, images), facts
