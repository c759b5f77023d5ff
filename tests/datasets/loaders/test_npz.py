import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from nvae.data import arrays as arrays_module
from nvae.data.loaders.npz import load_npz
from nvae.system.errors import InvalidValueError, UserError

N = 20


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)


@pytest.fixture
def load(make_config, tmp_path):
    """A function: the data of a file in the test's folder."""

    def load(name="a.npz", channels=3, size=8, **changes):
        dataset = {"name": "npz", "path": str(tmp_path / name)} | changes
        return load_npz(make_config(image_channels=channels, input_dimension=size, dataset=dataset))

    return load


def nchw(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def rows(images_u8):
    """The set of the images."""
    return {image.numpy().tobytes() for image in images_u8}


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "val_images", "test_images"),
        ("x_train", "x_val", "x_test"),
        ("training", "validation", "test"),
    ],
)
def test_npz_arrays_of_each_part(tmp_path, images, load, names):
    labels = {"train_labels": np.zeros((12, 1), np.uint8), "y_train": np.zeros(12, np.int64)}
    np.savez(tmp_path / "a.npz", **dict(zip(names, (images[:12], images[12:15], images[15:]), strict=True)), **labels)
    data = load()
    assert not data.validation_is_test
    for part, expected in zip((data.training, data.validation, data.test), np.split(images, [12, 15]), strict=True):
        assert torch.equal(part, nchw(expected))


def test_npz_test_images_are_for_validation_if_there_is_no_validation(tmp_path, images, load):
    np.savez_compressed(tmp_path / "mnist.npz", x_train=images[:12], y_train=images, x_test=images[12:], y_test=[1])
    data = load("mnist.npz")
    assert torch.equal(data.training, nchw(images[:12]))
    assert torch.equal(data.validation, nchw(images[12:]))
    assert data.test is None and data.validation_is_test


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize(("fraction", "validation"), [(0.05, 1), (0.25, 5), (0.001, 1), (0.999, 19)])
def test_npz_one_array_is_split_by_position(tmp_path, images, load, name, fraction, validation):
    if name == "a.npz":
        np.savez(tmp_path / name, pictures=images, labels=np.arange(N))
    else:
        np.save(tmp_path / name, images)
    data = load(name, validation_fraction=fraction)
    assert (len(data.training), len(data.validation)) == (N - validation, validation)
    assert rows(data.training) | rows(data.validation) == rows(nchw(images))
    assert load(name, validation_fraction=fraction).fingerprint == data.fingerprint
    order = [np.flatnonzero((images == image.permute(1, 2, 0).numpy()).all((1, 2, 3)))[0] for image in data.training]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("layout", "channels"),
    [("NHW", 1), ("NHWC", 1), ("NCHW", 1), ("NHW", 3), ("NHWC", 3), ("NCHW", 3)],
)
def test_npz_layouts(tmp_path, images, load, layout, channels):
    gray = np.repeat(images[..., :1], 3, axis=3)
    arrays = {"NHW": gray[..., 0], "NHWC": gray, "NCHW": gray.transpose(0, 3, 1, 2)[:, :channels]}
    array = np.ascontiguousarray(arrays[layout])
    np.savez(tmp_path / "a.npz", x_train=array, x_test=array[:2])
    data = load(channels=channels)
    assert torch.equal(data.training, nchw(gray)[:, :channels])


def test_npz_images_are_cropped_and_resized(tmp_path, load):
    images = np.zeros((4, 16, 48), np.uint8)
    images[:, :, 16:32] = 200
    np.save(tmp_path / "a.npy", images)
    assert load("a.npy").training.unique().tolist() == [200]
    np.save(tmp_path / "a.npy", images.swapaxes(1, 2).copy())
    assert load("a.npy", size=4).training.unique().tolist() == [200]


def test_npz_chunks_have_no_effect(tmp_path, images, load, monkeypatch):
    np.savez(tmp_path / "a.npz", images)
    at_once = load()
    for num_bytes in (1, 3 * 8 * 8 * 7):
        monkeypatch.setattr(arrays_module, "CHUNK_BYTES", num_bytes)
        assert load().fingerprint == at_once.fingerprint


class Unpickled:
    """Fails the test when the file runs code."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def one(shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (one((N, 8, 8), np.float32), "float32.*255"),
        (one((N, 8, 8), bool), "bool.*255"),
        (one((N, 8, 8), np.int64), r"int64.*astype"),
        (one((N, 8, 8), [("é", "u1")]), "uint8"),
        (np.array([[[Unpickled()] * 8] * 8] * 2), "object.*stack"),
        (one((N, 8, 3)), r"\(20, 8, 3\)"),
        (one((N, 8, 8, 4)), r"\(20, 8, 8, 4\)"),
        (one((N, 3, 8, 3)), r"\(20, 3, 8, 3\)"),
        (one((N, 8, 8, 8)), r"\(20, 8, 8, 8\)"),
        (one((0, 8, 8)), "no images"),
        (one((N, 0, 8)), "no images"),
        (one((1, 8, 8)), "at least two"),
        (one((8, 8)), "0 arrays of images"),
        (np.asfortranarray(one((N, 8, 8))), "Fortran"),
    ],
)
def test_npz_of_other_arrays_is_refused(tmp_path, load, array, pattern):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(UserError, match=pattern):
        load()
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=pattern):
        load("a.npy")


def test_npz_of_several_unnamed_arrays_is_refused(tmp_path, images, load):
    np.savez(tmp_path / "a.npz", cats=images, dogs=images)
    with pytest.raises(UserError, match=r"cats, dogs.*train_images"):
        load()


def header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    "shape", [(10**12, 8, 8), (2**62, 1, 1), (2, 10**6, 10**6), (-1, -64, N), (N + 1, 8, 8), (N - 1, 8, 8)]
)
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_npz_declared_sizes_are_checked_before_reading(tmp_path, load, name, shape):
    content = header(shape) + bytes(N * 8 * 8)
    if name == "a.npz":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images.npy", content)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(shape[0])):
        load(name)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_npz_header_is_bounded_before_memory_is_taken(tmp_path, load, name):
    content = b"\x93NUMPY\x02\x00" + (2**30).to_bytes(4, "little") + b" " * 2**26
    if name == "a.npz":
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", content)
    else:
        (tmp_path / name).write_bytes(content)
    del content
    tracemalloc.start()
    with pytest.raises(UserError) as raised:
        load(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 and "pickle" not in str(raised.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_npz_damaged_files_are_refused(tmp_path, images, load, save):
    file = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(file, images)
    whole = file.read_bytes()
    for content in (b"", b"hello" * 100, whole[:50], whole[: len(whole) // 2], b"PK" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=file.name):
            load(file.name)
    if save is not np.save:  # an .npy file has no checksum
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(UserError, match=file.name):
            load(file.name)


def test_npz_damaged_bit_of_a_list_of_members_hides_no_array(tmp_path, images, load):
    file = tmp_path / "a.npz"
    np.savez(file, x_train=images[:12], x_val=images[12:15], x_test=images[15:])
    whole, expected = file.read_bytes(), load()
    directory, same = whole.index(b"PK\1\2"), 0
    for bit in range(8 * directory, 8 * len(whole), 7):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            data = load()
        except UserError:
            continue
        same += 1  # a date, for example
        assert all(torch.equal(getattr(data, part), getattr(expected, part)) for part in ("training", "validation"))
        assert torch.equal(data.test, expected.test)
    assert 0 < same < (len(whole) - directory) / 2


def test_npz_missing_file_and_folder_are_refused(tmp_path, load):
    for name in ("missing.npz", "."):
        with pytest.raises(UserError, match=r"dataset\.path"):
            load(name)


def test_npz_numpy_choice_of_a_single_array(tmp_path, images, load):
    """The split of FFHQ-256 in VDVAE's program, with other numbers."""
    np.save(tmp_path / "ffhq-256.npy", images)
    data = load("ffhq-256.npy", validation_images=7, validation_choice="numpy_last", split_seed=5)
    order = np.random.RandomState(5).permutation(N)
    assert torch.equal(data.training, nchw(images[np.sort(order[:-7])]))
    assert torch.equal(data.validation, nchw(images[np.sort(order[-7:])]))
    assert data.test is None and not data.validation_is_test


@pytest.mark.parametrize(("ending", "part"), [("valid.npy", "validation"), ("test.npy", "test")])
def test_npz_folder_has_a_file_for_each_part(tmp_path, images, load, ending, part):
    np.save(tmp_path / "imagenet8-train.npy", images[:14])
    np.save(tmp_path / f"imagenet8-{ending}", images[14:])
    (tmp_path / "._imagenet8-train.npy").write_text("a hidden file")
    data = load("")
    assert torch.equal(data.training, nchw(images[:14])) and torch.equal(data.validation, nchw(images[14:]))
    assert data.validation_is_test == (part == "test")
    held_out = load("", validation_images=5, validation_choice="numpy_last", split_seed=42)
    order = np.random.RandomState(42).permutation(14)
    assert torch.equal(held_out.training, nchw(images[np.sort(order[:-5])]))
    assert torch.equal(held_out.validation, nchw(images[np.sort(order[-5:])]))
    assert torch.equal(held_out.test, nchw(images[14:])) and not held_out.validation_is_test


def test_npz_folder_of_one_file_is_the_file(tmp_path, images, load):
    np.savez(tmp_path / "a.npz", x_train=images[:12], x_test=images[12:])
    expected, data = load(), load("")
    assert data.fingerprint == expected.fingerprint and data.validation_is_test


@pytest.mark.parametrize("names", [("test.npy",), ("a-train.npy", "b-train.npy"), ("train.npy", "more.npz")])
def test_npz_folder_without_one_file_of_training_images_is_refused(tmp_path, images, load, names):
    for name in names:
        (np.savez if name.endswith("z") else np.save)(tmp_path / name, images)
    with pytest.raises(UserError, match="training") as caught:
        load("")
    assert all(name in str(caught.value) for name in names[1:])


def test_npz_validation_images_leave_the_test_array_alone(tmp_path, images, load):
    np.savez(tmp_path / "a.npz", x_train=images[:12], x_test=images[12:])
    data = load(validation_images=2)
    assert (len(data.training), len(data.validation)) == (10, 2)
    assert torch.equal(data.test, nchw(images[12:])) and not data.validation_is_test
    with pytest.raises(InvalidValueError) as caught:
        load(validation_images=12)
    assert (caught.value.name, caught.value.got) == ("dataset.validation_images", 12)


def test_npz_of_binary_values_is_refused(tmp_path, make_config):
    np.savez(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 2, (5, 8, 8)).astype(np.uint8))
    with pytest.raises(UserError, match="255"):
        load_npz(make_config(dataset={"name": "npz", "path": str(tmp_path / "a.npz")}))
