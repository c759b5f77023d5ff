"""Files of reference statistics."""

import zipfile

import numpy as np
import pytest
import torch

from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance
from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.statistics_files import read_statistics, write_statistics
from nvae.system.errors import UserError


def extractor(name="self", digest="0123", dimensions=3):
    return Extractor(name, digest, dimensions, "", lambda images: images.flatten(1), torch.device("cpu"))


@pytest.fixture
def statistics(generator):
    return FeatureStatistics.of(torch.randn(20, 3, generator=generator))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "statistics.npz"


def test_written_statistics_are_read_unchanged(statistics, file):
    write_statistics(file, statistics, {"extractor": extractor().facts(), "images": 20})
    read, facts = read_statistics(file, extractor())
    assert torch.equal(read.mean, statistics.mean) and torch.equal(read.covariance, statistics.covariance)
    assert facts["images"] == 20


@pytest.mark.parametrize("names", [("mu", "sigma"), ("m", "s")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_other_programs_are_read(statistics, file, names, dtype):
    arrays = (statistics.mean.numpy().astype(dtype), statistics.covariance.numpy().astype(dtype))
    np.savez_compressed(file, **dict(zip(names, arrays, strict=True)))
    read, facts = read_statistics(file, extractor())
    assert facts == {}
    assert frechet_distance(read, statistics) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("facts", [{}, {"images": None}, {"images": 4}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "expected"), [(3, 3), (4, 4), (20, 4)])
def test_number_of_images_of_a_file_is_known_or_at_least_the_rank(file, generator, facts, dtype, count, expected):
    statistics = FeatureStatistics.of(torch.randn(count, 3, generator=generator))
    arrays = FeatureStatistics(*(torch.from_numpy(part.numpy().astype(dtype)) for part in statistics[:2]), count)
    write_statistics(file, arrays, facts)
    read, _ = read_statistics(file, extractor())
    assert read.images == facts.get("images") or read.images == expected
    assert read.has_too_few_images is (read.images < 4)


@pytest.mark.parametrize("other", [extractor(name="inception"), extractor(digest="9999")])
def test_statistics_of_another_extractor_are_refused(statistics, file, other):
    write_statistics(file, statistics, {"extractor": other.facts()})
    with pytest.raises(UserError, match=other.name):
        read_statistics(file, extractor())


def test_statistics_of_other_dimensions_are_refused(statistics, file):
    write_statistics(file, statistics, {})
    with pytest.raises(UserError, match="dimensions"):
        read_statistics(file, extractor(dimensions=4))


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros(3)},
        {"mu": np.array([None] * 3), "sigma": np.eye(3)},  # a pickle
        {"mu": np.array([np.nan] * 3), "sigma": np.eye(3)},
        {"mu": np.array(["a"] * 3), "sigma": np.eye(3)},
        {"mu": np.zeros(3), "sigma": np.eye(3), "facts": np.array("no json")},
        {"mu": np.zeros(3), "sigma": np.eye(3), "facts": np.array('{"images": NaN}')},
        {"mu": np.zeros(3), "sigma": np.eye(3) * 1j},
        {"mu": np.zeros(3), "sigma": -np.eye(3)},
        {"mu": np.zeros(3), "sigma": np.eye(3) + np.eye(3, k=1)},
    ],
)
def test_other_arrays_are_refused(file, arrays):
    np.savez(file, **arrays)
    with pytest.raises(UserError):
        read_statistics(file, extractor())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_damaged_files_are_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(UserError):
        read_statistics(file, extractor())


def test_damaged_compressed_data_are_refused(statistics, file):
    np.savez_compressed(file, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_statistics(file, extractor())


def test_missing_file_and_single_array_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_statistics(file, extractor())
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError):
        read_statistics(tmp_path / "one.npy", extractor())


def test_long_header_is_refused_before_it_is_read(file, monkeypatch):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }".ljust(2**24) + b"\n"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        content = b"\x93NUMPY\2\0" + len(header).to_bytes(4, "little") + header + bytes(24)
        archive.writestr("mu.npy", content)
        archive.writestr("sigma.npy", content)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("the header was read"))
    with pytest.raises(UserError) as caught:
        read_statistics(file, extractor())
    assert "allow_pickle" not in str(caught.value)
