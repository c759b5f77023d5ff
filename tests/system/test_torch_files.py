"""Files of torch.save that are damaged or hostile: each is refused, or read as what was written."""

import errno
import io
import os
import random
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from nvae.system.torch_files import (
    DIGEST,
    CheckpointError,
    DamagedFileError,
    content_digest,
    exists,
    read_whole,
    write_whole,
)

from ..training.helpers import flat_state

FLIPS = 1000


def content():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 5, generator=generator)
    return {
        "numbers": {"a": 1, "b": -0.5, 3: None, "text": "ü\n", "big": 2**80, "yes": True, "pair": (1.0, [2, "x"])},
        "weights": {"all": weights, "row": weights[1], "channels": weights.view(1, 2, 3, 5).permute(0, 3, 1, 2)},
        "counts": [torch.arange(4), torch.zeros((), dtype=torch.bfloat16), torch.zeros(0, 3)],
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.model"
    write_whole(content(), path)
    return path


@pytest.fixture
def old_path(tmp_path):
    """A file without a digest, as earlier versions wrote."""
    torch.save(content(), tmp_path / "old.model")
    return tmp_path / "old.model"


def is_same(one, other):
    one, other = dict(flat_state(one)), dict(flat_state(other))
    return one.keys() == other.keys() and all(
        torch.equal(a, b) and a.dtype == b.dtype if torch.is_tensor(a) else (type(a), a) == (type(b), b)
        for a, b in ((one[key], other[key]) for key in one)
    )


def test_read_whole_gives_what_was_written(path, old_path):
    for file in (path, old_path):
        read = read_whole(file)
        assert is_same(read, content())
        assert read["weights"]["all"].data_ptr() != 0
        assert read["weights"]["row"].data_ptr() == read["weights"]["all"][1].data_ptr()  # shared, as written
    path.unlink()
    assert is_same(read, content())  # in memory, not in the file


def test_read_whole_of_a_mapped_file_gives_and_checks_the_same(path):
    read = read_whole(path, mapped=True)
    assert is_same(read, content())
    changed = content()
    changed["weights"]["all"][2, 3] += 1
    torch.save(changed | {"digest": content_digest(content())}, path.with_name("other.model"))
    with pytest.raises(DamagedFileError):
        read_whole(path.with_name("other.model"), mapped=True)


def refusals_of(path, damages):
    """Damage the file in many ways; assert that each is refused or changes nothing; return how many are refused."""
    refused = 0
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            assert is_same(read_whole(path), content())
        except CheckpointError:
            refused += 1
    return refused


def flips(whole, positions):
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        yield bytes(damaged)


@pytest.mark.slow
@pytest.mark.parametrize("has_digest", [True, False])
def test_read_whole_notices_flipped_bits_of_the_central_directory(path, old_path, has_digest):
    path = path if has_digest else old_path
    whole = path.read_bytes()
    start = whole.index(b"PK\1\2")
    positions = random.Random(0).sample(range(8 * start, 8 * len(whole)), FLIPS)
    assert refusals_of(path, flips(whole, positions)) > FLIPS / 2


@pytest.mark.parametrize("has_digest", [True, False])
def test_read_whole_notices_records_marked_as_folders(path, old_path, has_digest):
    path = path if has_digest else old_path
    whole = path.read_bytes()
    headers = [i for i in range(len(whole)) if whole.startswith(b"PK\1\2", i)]
    assert len(headers) > 8
    refusals_of(path, flips(whole, [8 * (header + 38) + 4 for header in headers]))


@pytest.mark.slow
def test_read_whole_notices_flipped_bits_anywhere(path):
    whole = path.read_bytes()
    refusals_of(path, flips(whole, random.Random(1).sample(range(8 * len(whole)), FLIPS)))


def test_read_whole_refuses_every_truncation(path):
    whole = path.read_bytes()
    sizes = {int(len(whole) * i / 60) for i in range(60)} | {0, 1, 2, 4, len(whole) - 1, len(whole) - 22}
    for size in sizes:
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedFileError):
            read_whole(path)


def test_read_whole_compares_the_digest(path):
    """Other content with right checksums of the zip file, as after a fault of the memory."""
    written = torch.load(path, weights_only=True)
    written["weights"]["all"][0, 0] += 1
    torch.save(written, path)
    with pytest.raises(DamagedFileError):
        read_whole(path)


def test_content_digest_identifies_types_names_and_numbers():
    one = torch.tensor([1.0])
    values = [1, 1.0, True, "1", [1], (1,), {"1": 1}, {1: 1}, [1, 1], [[1], 1], one, one.double(), one.view(1, 1), None]
    assert len({content_digest({"a": value}) for value in values}) == len(values)
    assert content_digest({"a": 1, DIGEST: "x"}) == content_digest({"a": 1})
    channels_last = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert content_digest({"a": channels_last}) == content_digest({"a": channels_last.contiguous()})
    with pytest.raises(TypeError):
        content_digest({"a": torch.Size([1])[0:0].__class__})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM])
@pytest.mark.parametrize("moment", ["open", "checksums", "load"])
def test_read_whole_does_not_take_an_error_of_the_system_for_damage(path, monkeypatch, number, moment):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    where = {"open": "builtins.open", "checksums": "zipfile.ZipFile.testzip", "load": "torch.load"}[moment]
    monkeypatch.setattr(where, fail)
    with pytest.raises(CheckpointError, match=os.strerror(number)) as raised:
        read_whole(path)
    assert not isinstance(raised.value, DamagedFileError)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT])
def test_read_whole_does_not_take_an_error_of_any_single_read_for_damage(path, monkeypatch, number):
    """Also where zipfile replaces the error by one of its own, which says that the file is no zip file."""
    left = [0]  # reads until the one that fails

    class Failing(io.FileIO):
        def count(self):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(number, os.strerror(number))

        def readinto(self, buffer):
            self.count()
            return super().readinto(buffer)

        def readall(self):
            self.count()
            return super().readall()

    for module in ("builtins", "io"):  # zipfile opens by io.open
        monkeypatch.setattr(f"{module}.open", lambda file, *mode: io.BufferedReader(Failing(file)))
    assert is_same(read_whole(path), content())
    reads = -left[0]
    assert reads > 10
    for left[0] in range(1, reads + 1):
        with pytest.raises(CheckpointError, match=os.strerror(number)) as raised:
            read_whole(path)
        assert not isinstance(raised.value, DamagedFileError)


def test_exists_does_not_take_an_error_of_the_system_for_a_missing_file(path, monkeypatch):
    assert exists(path)
    assert not any(map(exists, (path.with_name("b.model"), path / "below a file", path.with_name("a\0b"))))

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("pathlib.Path.stat", fail)
    with pytest.raises(CheckpointError):
        exists(path)


@pytest.mark.parametrize(
    "message",
    [
        "unable to open file </a.model> in read-only mode: Input/output error (5)",
        "unable to mmap 2048 bytes from file </a.model>: Stale file handle (116)\nException raised from here",
        "unable to mmap 2048 bytes from file </a.model>: Cannot allocate memory (12)",
        "unable to mmap 2048 bytes from file </a.model>: No such device (19)",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_read_whole_does_not_take_a_lack_of_memory_for_damage(path, monkeypatch, message):
    def fail(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr("torch.load", fail)
    with pytest.raises((CheckpointError, RuntimeError)) as raised:
        read_whole(path)
    assert not isinstance(raised.value, DamagedFileError)


# ---------------------------------------------------------------------------------------------------- hostile files


def repacked(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED, more=()):
    """Write the records of a file again, some of them changed, and more of them."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in [*((name, change(name, data)) for name, data in records), *more]:
            archive.writestr(name, data)


def test_read_whole_accepts_records_that_were_packed_again(path):
    repacked(path)
    assert is_same(read_whole(path), content())


def test_read_whole_refuses_compressed_records(path):
    """18 MB can unpack to gigabytes."""
    repacked(path, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedFileError):
        read_whole(path)


def test_read_whole_refuses_expanded_tensors(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "a.model")
    with pytest.raises(DamagedFileError):
        read_whole(tmp_path / "a.model")


@pytest.mark.parametrize("elements", [10**6, 2**31 - 1])
def test_read_whole_refuses_tensors_larger_than_the_file(tmp_path, elements):
    """A record of 300 numbers that the pickle takes for more; torch.load alone reads foreign memory."""
    path = tmp_path / "a.model"
    torch.save({"a": torch.zeros(300)}, path)

    def enlarge(name, data):
        number = b"M" + struct.pack("<H", 300)
        assert data.count(number) == 2 * name.endswith("data.pkl")  # the size of the storage and of the tensor
        return data.replace(number, b"J" + struct.pack("<i", elements))

    repacked(path, enlarge)
    with pytest.raises(DamagedFileError):
        read_whole(path)


def test_read_whole_refuses_many_tensors_of_the_same_bytes(tmp_path):
    """Records under other names that share their bytes, and so would take many times the memory of the file."""
    path = tmp_path / "a.model"
    torch.save({i: torch.zeros(1000) for i in range(3)}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offsets = {i.filename: i.header_offset for i in archive.infolist()}
    one, other = (struct.pack("<I", offsets[f"a/data/{i}"]) for i in (1, 2))
    start = whole.index(b"PK\1\2")
    path.write_bytes(whole[:start] + whole[start:].replace(other, one))
    with pytest.raises(DamagedFileError):
        read_whole(path)


def test_read_whole_refuses_containers_that_repeat_each_other(tmp_path):
    value = [0.5]
    for _ in range(40):
        value = [value, value]
    torch.save({"a": value}, tmp_path / "a.model")
    with pytest.raises(DamagedFileError):
        read_whole(tmp_path / "a.model")
    cycle = []
    cycle.append(cycle)
    torch.save({"a": cycle}, tmp_path / "a.model")
    with pytest.raises(DamagedFileError):
        read_whole(tmp_path / "a.model")


@pytest.mark.parametrize("value", [bytearray(5), torch.Size([3]), torch.zeros(2, dtype=torch.complex64)], ids=str)
def test_read_whole_refuses_types_that_no_checkpoint_has(tmp_path, value):
    torch.save({"a": value}, tmp_path / "a.model")
    with pytest.raises(CheckpointError):
        read_whole(tmp_path / "a.model")


def test_read_whole_refuses_a_second_pickle(path):
    """The pickle that is checked must be the one that torch reads."""
    buffer = io.BytesIO()
    torch.save({"a": bytearray(5)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        hostile = archive.read("archive/data.pkl")
    repacked(path, more=[("other/data.pkl", hostile)])
    with pytest.raises(DamagedFileError):
        read_whole(path)


def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.model")
    code = "import sys, pathlib; from nvae.system.torch_files import read_whole; read_whole(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)  # in a process: reading would wait
    assert "CheckpointError" in done.stderr and "not a regular file" in done.stderr
