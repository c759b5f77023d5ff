import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from nvae import checkpoint
from nvae.checkpoint import (
    CheckpointError,
    load,
    load_model,
    load_model_and_metadata,
    save,
    weights_digest,
)
from nvae.inference.sampling import Sampler
from nvae.system.files import previous_path
from nvae.system.torch_files import write_whole


@pytest.fixture
def model(make_model):
    return make_model()


def test_load_model_gives_the_same_images(model, tmp_path):
    save(model, tmp_path / "a.model")
    again = load_model(tmp_path / "a.model")
    assert again.config == model.config
    images, noise = torch.rand(2, 3, 8, 8), model.draw_noise(2, posterior=True)
    with torch.no_grad():
        results = [m(images, noise).px_z.mean() for m in (model, again)]
    assert torch.equal(*results)
    assert not again.training


def test_save_writes_tensors_and_plain_values(model, tmp_path):
    save(model, tmp_path / "a.model")
    content = torch.load(tmp_path / "a.model", weights_only=True)
    assert content["config"] == model.config.model_dump()


def test_save_keeps_the_previous_file(model, tmp_path):
    path = tmp_path / "a.model"
    save(model, path)
    first = path.read_bytes()
    model.constant.data.add_(1)
    save(model, path)
    assert previous_path(path).read_bytes() == first
    assert path.read_bytes() != first
    assert sorted(os.listdir(tmp_path)) == ["a.model", "a.model.previous"]


@pytest.mark.parametrize("moment", ["write", "flush", "link", "rename"])
def test_save_interrupted_at_any_moment_leaves_a_complete_file(model, tmp_path, monkeypatch, moment):
    path = tmp_path / "a.model"
    save(model, path)
    whole = path.read_bytes()

    class PowerCut(BaseException):
        pass

    def cut(*args, **kwargs):
        raise PowerCut

    where = {"write": (torch, "save"), "flush": (os, "fsync"), "link": (os, "link"), "rename": (os, "replace")}[moment]
    monkeypatch.setattr(*where, cut)
    with pytest.raises(PowerCut):
        save(model, path)
    assert path.read_bytes() == whole
    monkeypatch.undo()
    save(model, path)
    load_model(path)


def test_save_on_a_full_disk_keeps_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "a.model"
    save(model, path)
    whole = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError) as raised:
        save(model, path)
    assert raised.value.__cause__.disk_full
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["a.model"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files, which only Unix has")
def test_save_on_a_file_system_that_fills_up_keeps_the_old_file(model, tmp_path):
    """Without a replaced function: the writer inside torch meets the error."""
    import resource
    import signal

    path = tmp_path / "a.model"
    save(model, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as raised:
            save(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.__cause__.disk_full
    load_model(path)
    assert os.listdir(tmp_path) == ["a.model"]


def test_load_of_a_missing_file_names_existing_files(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="a.model"):
        load("a.model")
    save(model, checkpoint.model_path("x"))
    with pytest.raises(CheckpointError, match="final_result_x.model"):
        load("a.model")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_load_refuses_files_of_other_kinds(tmp_path, content):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "a.model")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_load_refuses_a_truncated_file_and_names_the_previous_one(model, tmp_path, kept):
    path = tmp_path / "a.model"
    save(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)
    previous_path(path).write_bytes(whole)
    with pytest.raises(CheckpointError, match="a.model.previous"):
        load(path)


class Harmful:
    """Runs code when it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_load_refuses_a_pickle_that_runs_code(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "weights": Harmful(tmp_path / "ran")}, tmp_path / "a.model")
    with pytest.raises(CheckpointError, match="written by another program"):
        load(tmp_path / "a.model")
    assert not (tmp_path / "ran").exists()


def test_load_refuses_a_plain_pickle(tmp_path):
    (tmp_path / "a.model").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        load(tmp_path / "a.model")
    assert not (tmp_path / "ran").exists()


def test_load_refuses_another_programs_checkpoint(tmp_path):
    torch.save({"epoch": 1, "state_dict": {"weight": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="another program"):
        load(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # `torch.jit.save` is deprecated; files of it exist
def test_load_refuses_torchscript_and_other_zip_files_as_another_programs(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a.png", b"")
    for name in ("script.pt", "pictures.zip"):
        with pytest.raises(CheckpointError, match=f"{name} was written by another program"):
            load(tmp_path / name)


def rewrite(path, **changes):
    content = torch.load(path, weights_only=True)
    write_whole(content | changes, path)


def test_load_refuses_a_newer_version(model, tmp_path):
    path = tmp_path / "a.model"
    save(model, path)
    rewrite(path, version=checkpoint.VERSION + 1)
    with pytest.raises(CheckpointError, match="newer version"):
        load(path)


def test_load_refuses_unknown_config_keys(model, tmp_path):
    path = tmp_path / "a.model"
    save(model, path)
    rewrite(path, config=model.config.model_dump() | {"attention": 8})
    with pytest.raises(CheckpointError, match="attention"):
        load(path)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_load_model_refuses_weights_of_another_network(model, tmp_path, change):
    path = tmp_path / "a.model"
    save(model, path)
    weights = torch.load(path, weights_only=True)["weights"]
    if change == "missing":
        del weights["constant"]
    elif change == "extra":
        weights["constant2"] = torch.zeros(1)
    else:
        weights["constant"] = torch.zeros(1, 2, 3, 3)
    rewrite(path, weights=weights)
    with pytest.raises(CheckpointError, match="constant"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "value"), [(5, torch.zeros(1)), ("text", "x"), ("constant", torch.zeros(1, dtype=torch.complex64))]
)
def test_load_model_refuses_weights_that_are_no_named_real_tensors(model, tmp_path, name, value):
    path = tmp_path / "a.model"
    save(model, path)
    rewrite(path, weights=torch.load(path, weights_only=True)["weights"] | {name: value})
    with pytest.raises(CheckpointError):
        load_model(path)


@pytest.mark.parametrize(
    "changes", [{"version": None}, {"version": "x"}, {"config": 5}, {"weights": []}, {"training": 5}], ids=str
)
def test_load_refuses_a_file_without_its_parts(model, tmp_path, changes):
    path = tmp_path / "a.model"
    save(model, path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load_model(path)


def test_load_refuses_changed_bytes(model, tmp_path):
    path = tmp_path / "a.model"
    save(model, path)
    content = bytearray(path.read_bytes())
    middle = content.index(model.constant.detach().numpy().tobytes()[:32])
    content[middle : middle + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def test_save_interrupted_leaves_no_temporary_file(model, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "a.model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("saved_weights/quickstart.checkpoint", "quickstart"),
        ("v1.5.checkpoint.previous", "v1.5.previous"),
        ("final_result_a.model", "final_result_a"),
        ("other.pt", "other.pt"),
    ],
)
def test_plain_name(file, name):
    assert checkpoint.name_of_file(file) == name


def test_paths_are_in_a_folder(tmp_path):
    assert checkpoint.checkpoint_path("x") == Path("saved_weights/x.checkpoint")
    assert checkpoint.model_path("x", tmp_path) == tmp_path / "saved_weights" / "final_result_x.model"


# ----------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("metadata", [{}, {"kl_per_group": [0.0, 1.5, 0.1 + 0.2, 1e-30]}], ids=["none", "measured"])
def test_save_keeps_metadata(model, tmp_path, metadata):
    save(model, tmp_path / "a.model", metadata=metadata)
    assert load_model_and_metadata(tmp_path / "a.model")[1] == metadata


@pytest.mark.slow
@pytest.mark.parametrize(
    "kl",
    [
        [],
        [1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [1.0, 2.0, 3.0, float("nan")],
        [1.0, float("inf"), 3.0, 4.0],
        [1.0, 2.0, 3.0, 4],
        [1.0, 2.0, 3.0, "4"],
        [1.0, 2.0, 3.0, torch.tensor(4.0)],
        torch.ones(4),
        {"0": 1.0},
        5.0,
    ],
    ids=str,
)
def test_load_refuses_anything_but_one_finite_kl_per_group(model, tmp_path, kl):
    save(model, tmp_path / "a.model")
    rewrite(tmp_path / "a.model", metadata={"kl_per_group": kl})
    with pytest.raises(CheckpointError, match="kl_per_group"):
        load_model(tmp_path / "a.model")


# ---------------------------------------------------------------------------------------- files of earlier versions


def assert_samples(model, expected, count):
    """Compare samples of a model with those that the program of the file drew."""
    plain, recalibrated = Sampler(model, 0.7, iterations=0), Sampler(model, 0.7, iterations=3)
    for name, images in (
        ("samples", plain.sample(count)),
        ("drawn_samples", plain.sample(count, "sample")),
        ("recalibrated_samples", recalibrated.sample(count)),
    ):
        torch.testing.assert_close(images, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("style", ["seed_style", "nvlabs_style"])
@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_version1_file_samples_the_same_images(root, style, kind):
    """Written by the code before version 2, together with the images that it sampled."""
    folder = root / "tests" / "data"
    expected = torch.load(folder / f"version1_{style}_expected.pt", weights_only=True)
    model, metadata = load_model_and_metadata(folder / f"version1_{style}.{kind}")
    assert metadata["kl_per_group"] == [1.0 + i for i in range(len(model.groups))]
    assert_samples(model, expected, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nvae", "seed", "ladder", "dvp"])
@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_version2_file_of_the_first_layout_samples_the_same_images(root, name, kind):
    """Written by commit e679c48, together with the images that it sampled."""
    folder = root / "tests" / "data"
    expected = torch.load(folder / f"version2_{name}_expected.pt", weights_only=True)["result"]
    model = load_model(folder / f"version2_{name}.{kind}")
    assert_samples(model, expected, 2)


# ------------------------------------------------------------------------------------------------------- digest


def test_weights_digest_is_equal_for_equal_weights(model, make_model, tmp_path):
    digest = weights_digest(model)
    assert len(digest) == 32
    assert int(digest, 16) >= 0
    assert weights_digest(make_model()) == digest
    save(model, tmp_path / "a.model")
    assert weights_digest(load_model(tmp_path / "a.model")) == digest
    assert weights_digest(model.train()) == digest


def test_weights_digest_ignores_the_memory_format(model):
    digest = weights_digest(model)
    weight = next(tensor for tensor in model.state_dict().values() if tensor.dim() == 4 and min(tensor.shape[1:]) > 1)
    assert not weight.is_contiguous(), "the test would see one format only"
    other = model.to(memory_format=torch.contiguous_format)
    assert all(tensor.is_contiguous() for tensor in other.state_dict().values())
    assert weights_digest(other) == digest


@pytest.mark.parametrize("name", ["constant", "posterior_head.bias", "running_mean", "running_var", "weight.original1"])
def test_weights_digest_changes_with_every_number(model, name):
    digest = weights_digest(model)
    tensor = [tensor for key, tensor in model.state_dict().items() if key.endswith(name)][-1]
    before = tensor.clone()
    tensor[(0,) * tensor.dim()] += 1e-3
    assert weights_digest(model) != digest
    tensor.copy_(before)
    assert weights_digest(model) == digest


def test_weights_digest_changes_with_the_order_of_tensors(model):
    digest = weights_digest(model)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    assert weights_digest(model) != digest


def test_weights_digest_changes_with_names_shapes_and_dtypes():
    zeros = torch.zeros(2, 3)
    others = [("a", zeros), ("b", zeros), ("a", zeros.T), ("a", zeros.int()), ("a", zeros.double()[:, :0])]
    modules = [torch.nn.Module() for _ in others]
    for module, (name, tensor) in zip(modules, others, strict=True):
        module.register_buffer(name, tensor)
    assert len({weights_digest(module) for module in modules}) == len(others)


def test_version1_weights_keep_their_digest(root):
    """The digest that version 1 computed, as cherry-picked selections of that version hold it."""
    model = load_model(root / "tests" / "data" / "version1_seed_style.model")
    assert weights_digest(model) == "d02f7a9abcb7544ab9352c6077827ef2"


# ---------------------------------------------------------------------------------------------- absurd and damaged


def test_load_model_compares_sizes_before_building(model, tmp_path, monkeypatch):
    """A small file whose config describes a network of gigabytes."""
    path = tmp_path / "a.model"
    save(model, path)
    rewrite(path, config=model.config.model_dump() | {"channel_towers": {"encoder": 9000, "decoder": 9000}})
    build, devices = checkpoint.build_model, []

    def record(config):
        devices.append(torch.get_default_device().type)
        return build(config)

    monkeypatch.setattr(checkpoint, "build_model", record)
    with pytest.raises(CheckpointError):
        load_model(path)
    assert devices == ["meta"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mapped files, which Linux has")
def test_load_and_load_model_leave_no_file_mapped(model, tmp_path):
    path = tmp_path / "a.checkpoint"
    save(model, path, training={"numbers": torch.ones(1000)})
    content = load(path, mapped=True)
    assert path.name in Path("/proc/self/maps").read_text()
    content.clear()
    kept = load(path), load_model_and_metadata(path)
    assert path.name not in Path("/proc/self/maps").read_text()
    assert torch.equal(kept[0]["training"]["numbers"], torch.ones(1000))


def test_load_recommends_a_whole_previous_file_only(model, tmp_path):
    path = tmp_path / "a.model"
    save(model, path)
    whole = path.read_bytes()
    for previous, is_recommended in ((whole, True), (whole[:1000], False), (b"", False)):
        previous_path(path).write_bytes(previous)
        for damage in (lambda: path.write_bytes(whole[:-9]), path.unlink):
            path.write_bytes(whole)
            damage()
            with pytest.raises(CheckpointError) as raised:
                load(path)
            assert (previous_path(path).name in str(raised.value)) is is_recommended
    previous_path(path).write_bytes(whole)
    load_model(previous_path(path))


def test_save_keeps_the_name_of_the_run(model, tmp_path):
    for run in (None, "little_2.5"):
        save(model, tmp_path / "a.model", run=run)
        assert load(tmp_path / "a.model").get("run") == run
    rewrite(tmp_path / "a.model", run=5)
    with pytest.raises(CheckpointError, match="run"):
        load(tmp_path / "a.model")
