"""The root folder: saved_weights/, runs/, images/ and dataset/ lie below NVAE_ROOT or --root, nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvae.checkpoint import checkpoint_path, model_path
from nvae.cli.models import find_model
from nvae.config import parse_config
from nvae.data.paths import dataset_path
from nvae.schema import DATASETS
from nvae.system.files import root_folder
from nvae.training.report.record import find_run

SMALL = "channel_towers: 8\nnumber_of_scales: 2\ninitial_splits_per_scale: 1\nlatent_size: 4\n"


@pytest.mark.parametrize(
    ("value", "folder"), [(None, "."), ("", "."), ("/data/a b", "/data/a b"), ("~/x", "/home/me/x")]
)
def test_root_is_the_working_directory_or_that_of_the_environment(monkeypatch, value, folder):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NVAE_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("NVAE_ROOT", value)
    assert root_folder() == Path(folder)
    assert checkpoint_path("a") == Path(folder, "saved_weights", "a.checkpoint")
    assert model_path("a") == Path(folder, "saved_weights", "final_result_a.model")
    assert checkpoint_path("a", "other") == Path("other", "saved_weights", "a.checkpoint")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{}", "root/dataset"),
        ("{name: mnist}", "root/dataset/mnist"),
        ("{path: dataset/celeba}", "root/dataset/celeba"),
        ("{path: photos}", "photos"),
        ("{path: ./dataset}", "root/dataset"),
        ("{path: datasets}", "datasets"),
        ("{path: /dataset}", "/dataset"),
        ("{name: mnist, path: ../dataset}", "../dataset"),
    ],
)
def test_data_sets_are_below_the_root_by_default(monkeypatch, section, expected):
    monkeypatch.setenv("NVAE_ROOT", "root")
    assert dataset_path(parse_config(f"{SMALL}dataset: {section}\n").dataset) == Path(expected)
    assert {name for name in DATASETS if "path" in DATASETS[name].model_fields} >= {"folder", "mnist", "lsun"}


def test_commands_write_below_the_root_and_find_what_they_wrote(command, tools, monkeypatch, tmp_path_factory):
    root = tmp_path_factory.mktemp("a root")
    monkeypatch.setenv("NVAE_ROOT", "elsewhere")  # the option wins, and is undone after the test
    (tools / "saved_weights").rename(root / "saved_weights")
    assert command("sample.py", "tiny", "0.7", "0", "--no-window", "--root", root).code == 0
    assert len(list((root / "images").glob("sample_tiny_*.png"))) == 1
    assert command("-m", "reconstruct", "tiny", "wide.png", "--out", "here", "--no-window", "--root", root).code == 0
    assert sorted(path.name for path in tools.iterdir()) == ["here", "right.png", "wide.png"]
    monkeypatch.setenv("NVAE_ROOT", str(root))
    assert find_model("tiny") == str(checkpoint_path("tiny"))
    record = find_run("tiny")
    assert record is not None
    assert record.root == root
    command("sample.py", "gone", "0.7").assert_refused(str(root / "saved_weights"))


@pytest.mark.slow
def test_train_writes_below_the_root_only(command, configs, files, monkeypatch):
    monkeypatch.setenv("NVAE_ROOT", "out")
    before = files.all(configs)
    assert command("train.py", "little", "--epochs", 1, "--set", "training_parameters.evaluation_samples=0").code == 0
    after = files.all(configs)
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("out/")}
    assert {"out/saved_weights/little.checkpoint", "out/runs/little/metrics.jsonl"} <= set(after)
    assert command("train.py", "little", "--epochs", 1, "--set", "training_parameters.evaluation_samples=0").code == 0
    assert command("sample.py", "little", "0.7", "0", "--no-window").code == 0
    assert command("-m", "summary", "little").out.splitlines()[-1].endswith(" --root out")
    assert any(name.startswith("out/images/sample_little") for name in files.all(configs))
