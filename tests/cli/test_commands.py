"""The scripts as a person runs them: results, exit codes, and one sentence for every mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from nvae.checkpoint import load

TINY_YAML = """
channel_towers: 4
number_of_scales: 2
initial_splits_per_scale: 1
latent_size: 2
input_dimension: 8
num_blocks_prepost: 1
num_cells_per_block_prepost: 1
cells_per_split_enc: 1
cells_per_input_dec: 1
sampling_method: logistic_mixture
dataset: {name: toy_faces, training_images: 24, validation_images: 8}
training_parameters: {batch_size: 8, epochs: 2, epochs_per_checkpoint: 1, warmup_epochs: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with one tiny config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_configs").mkdir()
    (tmp_path / "model_configs" / "little.yaml").write_text(TINY_YAML)
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def metrics(folder, name="little"):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        del entry["images_per_second"]
    return entries


def wait_for(process, condition):
    """Until the condition holds; an error where the process ends before it does."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def test_training_leaves_a_checkpoint_a_model_numbers_and_pictures(command, folder):
    code, out, _ = command("train.py", "little")
    assert code == 0
    assert "final_result_little.model" in out
    there = set(files(folder))
    assert {"saved_weights/little.checkpoint", "saved_weights/final_result_little.model"} < there
    run = {
        "config.yaml",
        "metrics.jsonl",
        "samples.png",
        "reconstructions.png",
        "bits_per_dimension.png",
        "kl_per_group.png",
    }
    assert {f"runs/little/{name}" for name in run} < there
    last = metrics(folder)[-1]
    assert (last["epoch"], last["step"], last["images"]) == (2, 6, 48)
    assert {"elbo", "kl_per_group", "validation_elbo", "validation_bits_per_dimension"} <= last.keys()


def test_the_same_command_again_goes_on_and_ends_where_one_run_ends(command, folder, tmp_path_factory, monkeypatch):
    command("train.py", "little", "--set", "training_parameters.epochs=1")
    _, out, _ = command("train.py", "little")
    assert "going on from" in out
    two_runs, two_metrics = load("saved_weights/little.checkpoint"), metrics(folder)[-1]
    (folder / "whole").mkdir()
    monkeypatch.chdir(folder / "whole")
    command("train.py", folder / "model_configs" / "little.yaml")
    one_run = load("saved_weights/little.checkpoint")
    assert all(torch.equal(one_run["weights"][name], two_runs["weights"][name]) for name in one_run["weights"])
    assert metrics(folder / "whole")[-1] == two_metrics


def test_a_finished_run_says_how_to_go_on(command):
    command("train.py", "little")
    code, out, _ = command("train.py", "little")
    assert code == 0
    assert "--set training_parameters.epochs=4" in out


def test_fresh_starts_over_and_keeps_the_old_files(command, folder):
    command("train.py", "little")
    old = (folder / "saved_weights" / "little.checkpoint").read_bytes()
    code, out, _ = command("train.py", "little", "--fresh", "--set", "training_parameters.epochs=1")
    assert code == 0
    assert (folder / "saved_weights" / "little.checkpoint.1").read_bytes() == old
    assert (folder / "saved_weights" / "final_result_little.model.1").exists()
    assert len(metrics(folder, "little.1")) == 2
    assert len(metrics(folder)) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_next_run_ends_where_one_run_ends(folder, root, number, code):
    """In processes of their own, and stopped in the middle of an epoch."""
    sets = ["--set", "dataset.training_images=1500", "--set", "training_parameters.batch_size=4"]
    sets += ["--set", "training_parameters.epochs=1"]
    start = [sys.executable, "-u", str(root / "train.py"), "little", "--device", "cpu", *sets]
    process = subprocess.Popen(start, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()  # the introduction; then the first checkpoint, then the steps
    wait_for(process, (folder / "saved_weights" / "little.checkpoint").exists)
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "run the same command again to go on" in out
    stopped = load(folder / "saved_weights" / "little.checkpoint")
    assert 0 < stopped["training"]["position"]["step"] < 375

    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    again = subprocess.run(start, cwd=folder, capture_output=True, text=True, env=environment, check=True)
    assert f"step {stopped['training']['position']['step']}" in again.stdout
    whole = folder / "whole"
    whole.mkdir()
    start[3] = str(folder / "model_configs" / "little.yaml")
    subprocess.run(start, cwd=whole, capture_output=True, check=True)
    results = [load(place / "saved_weights" / "little.checkpoint")["weights"] for place in (folder, whole)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert metrics(folder) == metrics(whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint(folder, root):
    sets = ["--set", "dataset.training_images=1500", "--set", "training_parameters.images_per_checkpoint=400"]
    start = [sys.executable, str(root / "train.py"), "little", "--device", "cpu", *sets]
    process = subprocess.Popen(start, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics_file = folder / "runs" / "little" / "metrics.jsonl"
    wait_for(process, lambda: metrics_file.exists() and len(metrics_file.read_text().splitlines()) >= 2)
    process.kill()
    process.wait()
    position = load(folder / "saved_weights" / "little.checkpoint")["training"]["position"]
    assert position["images_seen"] % 400 == 0
    again = subprocess.Popen(start, cwd=folder, stdout=subprocess.PIPE, text=True)
    again.stdout.readline()
    assert f"step {position['step']}" in again.stdout.readline()
    again.kill()
    again.communicate()


def test_dry_run_describes_and_writes_nothing(command, folder):
    before = files(folder)
    code, out, _ = command("train.py", "little", "--dry-run")
    assert code == 0
    assert "GFLOP" in out
    assert files(folder) == before


def test_dry_run_of_every_kind_of_weights(command):
    for changes in ("spectral_normalization=True", "style=nvlabs", "weight_normalization=exponential"):
        code, out, _ = command("train.py", "little", "--dry-run", "--set", changes, "--set", "num_flows=1")
        assert code == 0
        assert "GFLOP" in out


def test_help_lists_the_configs(command):
    code, out, _ = command("train.py", "--help")
    assert code == 0
    assert "little" in out
    assert "penguin" in out


def test_sample_saves_a_picture_that_says_what_it_is(command, folder):
    command("train.py", "little")
    code, out, _ = command("sample.py", "saved_weights/little.checkpoint", "0.7", "2", "--seed", "5")
    assert code == 0
    path = folder / "images" / "sample_little_temperature0.7_iterations2_seed5.png"
    assert str(path.relative_to(folder)) in out
    with Image.open(path) as picture:
        assert picture.size == (496, 496)  # three cells of 160 and four margins of 4
        assert picture.text["temperature"] == "[0.7]"
        assert picture.text["seed"] == "5"
        assert "little.checkpoint" in picture.text["model"]
    first = path.read_bytes()
    command("sample.py", "saved_weights/little.checkpoint", "0.7", "2", "--seed", "5")
    assert path.read_bytes() == first
    command("sample.py", "saved_weights/final_result_little.model", "0.7", "2", "--seed", "5")
    final = folder / "images" / "sample_final_result_little_temperature0.7_iterations2_seed5.png"
    with Image.open(final) as one, Image.open(path) as other:
        assert one.tobytes() == other.tobytes()


def test_summary_of_a_config_and_of_a_file(command):
    command("train.py", "little")
    by_name, by_file = (command("-m", "summary", what) for what in ("little", "saved_weights/little.checkpoint"))
    assert by_name[0] == by_file[0] == 0
    assert by_name[1] == by_file[1]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["litle"], "unknown config 'litle'.*little"),
        (["little", "--set", "latent_sise=3"], "unknown key latent_sise.*latent_size"),
        (["little", "--set", "latent_size=many"], "latent_size: got 'many', expected a whole number"),
        (["little", "--set", "input_dimension=9"], "input_dimension: got 9.*a multiple of 4"),
        (["little", "--set", "number_of_scales=100000"], "number_of_scales: got 100000"),
        (["little", "--set", "pixel_bits=9"], "pixel_bits: got 9"),
        (["little", "--set", "nonsense"], "key=value"),
        (["little", "--set", "latent_size=" + "[" * 2000], "a value in YAML"),
        (["little", "--set", "latent_size=2020-13-45"], "a value in YAML"),
        (["little", "--device", "abacus"], "no device 'abacus'"),
        (["little", "--set", "dataset.name=folder"], "image folder 'dataset' does not exist"),
        (["little", "--set", "dataset.name=folder", "--set", "dataset.path=model_configs"], "model_configs.*0 images"),
        ([], "required: CONFIG"),
        (["little", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_train_answers_mistakes_with_a_sentence_and_writes_nothing(command, folder, arguments, pattern):
    before = files(folder)
    command("train.py", *arguments).assert_refused(pattern)
    assert files(folder) == before


def test_malformed_yaml_names_file_and_line(command, folder):
    (folder / "model_configs" / "bad.yaml").write_text("channel_towers: 4\nlatent_size: [2\n")
    command("train.py", "bad").assert_refused(r"bad.yaml, line 3: invalid YAML")


def test_a_changed_config_is_refused_with_its_keys(command, folder):
    command("train.py", "little")
    before = (folder / "saved_weights" / "little.checkpoint").read_bytes()
    command("train.py", "little", "--set", "latent_size=3").assert_refused(r"latent_size \(was 2, is 3\).*--fresh")
    assert (folder / "saved_weights" / "little.checkpoint").read_bytes() == before


def test_a_checkpoint_that_is_none_is_refused(command, folder):
    (folder / "saved_weights").mkdir()
    (folder / "saved_weights" / "little.checkpoint").write_text("hello")
    before = files(folder)
    command("train.py", "little").assert_refused("little.checkpoint is not a checkpoint")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["missing.model", "0.7"], "there is no file 'missing.model'"),
        (["model_configs/little.yaml", "0.7"], "is not a checkpoint"),
        (["a.model", "warm"], "'warm' is not a number from 0 on"),
        (["a.model", "-1"], "'-1' is not a number from 0 on|required|expected"),
        (["a.model", "nan"], "'nan' is not a number from 0 on"),
        (["a.model", "0.7", "some"], "'some' is not a whole number from 0 on"),
        (["a.model"], "give a TEMPERATURE"),
    ],
)
def test_sample_answers_mistakes_with_a_sentence(command, folder, arguments, pattern):
    before = files(folder)
    command("sample.py", *arguments).assert_refused(pattern)
    assert files(folder) == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(command, folder):
    command("train.py", "little", "--set", "training_parameters.epochs=1")
    before = (folder / "saved_weights" / "little.checkpoint").read_bytes()
    result = command("train.py", "little", "--set", "training_parameters.learning_rate=1e6")
    assert result[0] == 2
    assert "the loss became" in result[2]
    assert (folder / "saved_weights" / "little.checkpoint").read_bytes() == before


def test_weights_that_are_not_finite_are_never_saved(command, folder):
    """One step between two checkpoints: the loss is still finite when the weights no longer are."""
    sets = ["--set", "dataset.training_images=8"]
    command("train.py", "little", *sets, "--set", "training_parameters.epochs=1")
    before = (folder / "saved_weights" / "little.checkpoint").read_bytes()
    rate = ["--set", "training_parameters.learning_rate=1e6"]
    code, _, error = command("train.py", "little", *sets, "--set", "training_parameters.epochs=3", *rate)
    assert code == 2
    assert "still holds those from before" in error
    assert (folder / "saved_weights" / "little.checkpoint").read_bytes() == before
    assert command("train.py", "little", *sets)[0] == 0


def test_configs_whose_names_hold_a_dot_are_two_models(command, folder):
    for name in ("v1.5", "v1.6"):
        (folder / "model_configs" / f"{name}.yaml").write_text(TINY_YAML)
        command("train.py", name, "--set", "training_parameters.epochs=1")
    assert {"saved_weights/v1.5.checkpoint", "saved_weights/v1.6.checkpoint"} < set(files(folder))


def test_pictures_that_cannot_be_drawn_do_not_stop_the_training(command, folder):
    (folder / "runs" / "little" / "samples.png").mkdir(parents=True)
    code, out, _ = command("train.py", "little")
    assert code == 0
    assert "could not be drawn" in out


def test_without_write_reconstruction_there_is_no_such_picture(command, folder):
    command("train.py", "little", "--set", "training_parameters.write_reconstruction=False")
    assert not (folder / "runs" / "little" / "reconstructions.png").exists()
    assert (folder / "runs" / "little" / "samples.png").exists()


def test_a_run_folder_that_cannot_be_written_is_one_sentence(command, folder):
    (folder / "runs").write_text("")
    command("train.py", "little").assert_refused("runs/little cannot be written")


def test_a_broken_picture_of_any_name_is_named_and_left_out(command, folder):
    (folder / "dataset").mkdir()
    for i in range(9):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / "dataset" / f"{i}.png")
    try:
        (folder / "dataset" / os.fsdecode(b"\xff.png")).write_text("broken")
    except OSError:
        pytest.skip("this file system takes no such names")
    code, out, _ = command("train.py", "little", "--set", "dataset={name: folder}")
    assert code == 0
    assert "1 of 10 images cannot be read" in out


def test_a_summary_of_a_file_with_any_ending(command, folder):
    command("train.py", "little")
    command("train.py", "little", "--fresh", "--set", "training_parameters.epochs=1")
    assert command("-m", "summary", "saved_weights/little.checkpoint.1")[0] == 0


# ------------------------------------------------------------------------------------------- evaluate and import


def test_training_ends_with_an_evaluation_once(command, folder):
    _, out, _ = command("train.py", "little", "--set", "training_parameters.evaluation_samples=3")
    assert "log p(x), 3 importance samples" in out
    file = folder / "runs" / "little" / "evaluation.json"
    found = json.loads(file.read_text())
    assert (found["images"], found["samples"], found["step"]) == (8, 3, 6)
    assert found["elbo"]["mean"] < found["log_likelihood"]["mean"] < 0
    with Image.open(file.with_suffix(".png")) as picture:
        assert min(picture.size) > 200
    _, again, _ = command("train.py", "little", "--set", "training_parameters.evaluation_samples=3")
    assert "importance samples" not in again
    _, more, _ = command("train.py", "little", "--set", "training_parameters.evaluation_samples=4")
    assert "log p(x), 4 importance samples" in more
    command("train.py", "little", "--set", "training_parameters.epochs=3")
    assert json.loads(file.read_text())["step"] == 9


def test_evaluation_can_be_left_out(command, folder):
    _, out, _ = command("train.py", "little", "--set", "training_parameters.evaluation_samples=0")
    assert "importance samples" not in out
    assert not (folder / "runs" / "little" / "evaluation.json").exists()


def test_evaluate_reports_saves_and_repeats(command, folder):
    command("train.py", "little")
    model = "saved_weights/final_result_little.model"
    code, out, _ = command("-m", "evaluate", model, "--nll", "--samples", "5", "--out", "here")
    assert code == 0
    stem = folder / "here" / "evaluation_final_result_little_toy_faces_validation_8images_5samples"
    assert stem.with_name(stem.name + ".png").is_file()
    file = stem.with_name(stem.name + ".json")
    found = json.loads(file.read_text())
    assert f"{found['elbo']['mean']:.2f}" in out
    assert f"{found['log_likelihood_bits']['mean']:.4f}" in out
    assert (found["model"], found["images"], found["part"]) == (model, 8, "validation")
    first = file.read_bytes()
    command("-m", "evaluate", model, "--nll", "--samples", "5", "--out", "here")
    assert file.read_bytes() == first
    _, out, _ = command("-m", "evaluate", model, "--nll", "--samples", "5", "--out", "here", "--images", "1")
    assert "validation_1images_5samples.json" in out
    assert "±" not in out  # one image has no standard error
    assert file.read_bytes() == first
    _, out, _ = command("-m", "evaluate", model, "--part", "training", "--images", "3")
    assert out.startswith("3 training images of toy_faces")
    assert "importance" not in out


def test_evaluate_on_other_images(command, folder):
    command("train.py", "little")
    (folder / "mine").mkdir()
    for i in range(8):
        Image.new("RGB", (20, 20), (30 * i, 0, 255 - 30 * i)).save(folder / "mine" / f"{i}.png")
    _, out, _ = command(
        "-m",
        "evaluate",
        "saved_weights/little.checkpoint",
        "--dataset",
        "folder",
        "--path",
        "mine",
        "--part",
        "training",
    )
    assert "training images of folder" in out


def test_import_writes_a_model_that_the_tools_open(command, folder):
    from nvae.checkpoint import load_model
    from nvae.interop.mgp123 import key_map

    command("train.py", "little")
    model = load_model("saved_weights/little.checkpoint")
    state = {theirs: model.state_dict()[ours] for ours, theirs in key_map(model).items()}
    torch.save({"state_dict": state, "model_arch": "somewhere/unknown.yaml"}, "theirs.checkpoint")
    code, out, _ = command("-m", "import", "theirs.checkpoint", "-o", "ours.model")
    assert code == 0
    assert "config: " in out
    assert "2 x 4 x 4" in out
    pictures = []
    for path in ("ours.model", "saved_weights/little.checkpoint"):
        assert command("sample.py", path, "0.7", "2", "--seed", "5", "--out", f"images_{path[:4]}")[0] == 0
        (picture,) = (folder / f"images_{path[:4]}").glob("*.png")
        pictures.append(Image.open(picture).tobytes())
    assert pictures[0] == pictures[1]
    code, _, _ = command("-m", "import", "theirs.checkpoint", "--config", "little", "-o", "again.model")
    assert code == 0
    command("-m", "import", "theirs.checkpoint", "--config", "quickstart", "-o", "b.model").assert_refused("--config")
    command("-m", "evaluate", "again.model", "--dataset", "toy_faces", "--images", "2")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["evaluate"], "required: MODEL"),
        (["evaluate", "missing.model"], "there is no file 'missing.model'"),
        (["evaluate", "a.model", "--samples", "0"], "'0' is not a whole number from 1 on"),
        (["evaluate", "a.model", "--samples", "5"], "say --nll with it"),
        (["evaluate", "a.model", "--dataset", "minst"], "invalid choice: 'minst'"),
        (["import", "a.pt"], "required: -o"),
        (["import", "a.pt", "-o", "a.pt"], r"a\.pt.*\.model"),
        (["import", "a.pt", "-o", "a.model"], r"a\.pt is not a file"),
        (["import", "model_configs/little.yaml", "-o", "a.model"], r"little\.yaml"),
        (["import", "a.pt", "--config", "litle", "-o", "a.model"], "unknown config 'litle'"),
        (["imprt"], "invalid choice: 'imprt'"),
    ],
)
def test_the_other_commands_answer_mistakes_with_a_sentence(command, folder, arguments, pattern):
    before = files(folder)
    command("-m", *arguments).assert_refused(pattern)
    assert files(folder) == before
