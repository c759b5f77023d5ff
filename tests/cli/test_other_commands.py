"""evaluate, import and summary."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.checkpoint import load_model
from nvae.interop.mgp123 import key_map

MODEL = "saved_weights/little.checkpoint"


def test_evaluate_saves_and_repeats(command, trained, files):
    arguments = ("-m", "evaluate", "little", "--nll", "--samples", "5", "--out", "here")
    code, out, _ = command(*arguments)
    assert code == 0
    name = "evaluation_little_toy_faces_validation_8images_5samples"
    assert files.names("here") == [f"{name}.json", f"{name}.png"]
    first = files.all(trained / "here")
    evaluation = json.loads(first[f"{name}.json"])
    assert f"{evaluation['elbo']['mean']:.2f}" in out
    assert f"{evaluation['log_likelihood_bits']['mean']:.4f}" in out
    assert (evaluation["model"], evaluation["images"], evaluation["part"]) == (MODEL, 8, "validation")
    command(*arguments)
    assert files.all(trained / "here") == first
    _, out, _ = command(*arguments, "--images", "1")
    assert "±" not in out  # one image has no standard error
    command("-m", "evaluate", "little", "--part", "training", "--images", "3", "--out", "there")
    assert files.names("there")[0] == "evaluation_little_toy_faces_training_3images_1samples.json"


def test_evaluate_on_other_images(command, trained, files):
    (trained / "mine").mkdir()
    for i in range(8):
        Image.new("RGB", (20, 20), (30 * i, 0, 255 - 30 * i)).save(trained / "mine" / f"{i}.png")
    arguments = ("--dataset", "folder", "--data", "mine", "--part", "training")
    assert command("-m", "evaluate", "little", *arguments).code == 0
    assert files.names()[0].startswith("evaluation_little_folder_training_")


def test_evaluate_refuses_a_missing_test_part(command, trained):
    command("-m", "evaluate", "little", "--part", "test").assert_refused("toy_faces")


def test_import_writes_a_model_that_samples_the_same(command, trained, files):
    model = load_model(MODEL)
    state = {theirs: model.state_dict()[ours] for ours, theirs in key_map(model).items()}
    torch.save({"state_dict": state, "model_arch": "somewhere/unknown.yaml"}, "theirs.checkpoint")
    assert command("-m", "import", "theirs.checkpoint", "-o", "ours.model").code == 0
    assert command("-m", "import", "theirs.checkpoint", "--config", "little", "-o", "again.model").code == 0
    for path in ("ours.model", "again.model", MODEL):
        assert (
            command("sample.py", path, "0.7", "2", "--seed", "5", "--out", f"{path[-15:-6]}.png".replace("/", "")).code
            == 0
        )
    pictures = [files.pixels(path) for path in sorted(trained.glob("*.png"))]
    assert len(pictures) == 3
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)


def test_summary_of_a_config_and_of_its_model_agree(command, trained):
    by_name, by_file = (command("-m", "summary", what) for what in ("little", MODEL))
    assert by_name.code == by_file.code == 0
    assert by_name.out.splitlines()[:10] == by_file.out.splitlines()[:10]


@pytest.mark.slow
def test_summary_takes_the_name_of_a_run(command, configs):
    changes = ("--set", "training_parameters.epochs=1", "--set", "latent_size=3")
    assert command("train.py", "little", "--name", "second", *changes).code == 0
    by_name, by_file = (command("-m", "summary", what).out for what in ("second", "saved_weights/second.checkpoint"))
    assert by_name == by_file
    assert by_name != command("-m", "summary", "little").out  # a config's name means the config


@pytest.mark.slow
def test_summary_of_a_run_says_what_it_did_and_how_to_continue(command, trained):
    for what in ("little", "runs/little", MODEL, "saved_weights/final_result_little.model"):
        code, out, _ = command("-m", "summary", what)
        assert code == 0
        assert "finished, epoch 1 of 1" in out
        assert "KL per latent group" in out
    line = command("-m", "summary", "little").out.splitlines()[-1].split()
    assert line[:3] == ["python3", "-m", "nvae"]
    assert command("-m", *line[3:]).code == 0  # --epochs 2
    assert "finished, epoch 2 of 2" in command("-m", "summary", "little").out


@pytest.mark.slow
def test_summary_writes_the_page(command, trained):
    page = trained / "runs" / "little" / "report.html"
    page.unlink()
    assert command("-m", "summary", "little", "--html").code == 0
    assert command("-m", "summary", "little", "--html", "here.html").code == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert (trained / "here.html").exists()
    command("-m", "summary", "little", "--html", MODEL).assert_refused("--html")


@pytest.mark.slow
def test_summary_without_a_run_refuses_a_page(command, tools, configs):
    for what in ("little", "saved_weights/tiny.checkpoint"):
        assert command("-m", "summary", what).code == 0
        command("-m", "summary", what, "--html").assert_refused(what)
    (configs / "runs" / "none").mkdir(parents=True)
    command("-m", "summary", "runs/none").assert_refused("none")
    command("-m", "summary", "model_configs").assert_refused("model_configs")


def test_summary_of_a_picture_prints_its_settings(command, trained, files):
    command("sample.py", "little", "0.7", "0", "--seed", "5", "--out", "a.png")
    lines = [line.split(maxsplit=1) for line in command("-m", "summary", "a.png").out.splitlines()]
    assert dict(lines) == files.texts("a.png")
    Image.new("RGB", (8, 8)).save("plain.png")
    command("-m", "summary", "plain.png").assert_refused("plain.png")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["evaluate"], "MODEL"),
        (["evaluate", "missing.model"], "missing.model"),
        (["evaluate", "a.model", "--samples", "5"], "--nll"),
        (["import", "a.pt", "-o", "a.pt"], ".model"),
        (["import", "a.pt", "-o", "a.model"], "a.pt"),
        (["import", "model_configs/little.yaml", "-o", "a.model"], "little.yaml"),
        (["import", "a.pt", "--config", "litle", "-o", "a.model"], "litle"),
        (["summary", "litle"], "litle"),
        (["imprt"], "imprt"),
        ([], "COMMAND"),
    ],
)
def test_other_commands_mistakes_are_one_line_and_write_nothing(command, configs, files, arguments, pattern):
    before = files.all(configs)
    command("-m", *arguments).assert_refused(pattern)
    assert files.all(configs) == before
