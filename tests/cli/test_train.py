import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from nvae.checkpoint import load
from nvae.config import available_configs, load_config
from nvae.system.errors import UserError
from nvae.system.locks import run_lock
from nvae.training import recovery, run_output
from nvae.training.position import Position
from nvae.training.recovery import Recovery
from nvae.training.schedules import rates
from nvae.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("configs")
CHECKPOINT = "saved_weights/little.checkpoint"


def sets(**training_parameters):
    """--set options for the training parameters."""
    return [
        word for key, value in training_parameters.items() for word in ("--set", f"training_parameters.{key}={value}")
    ]


def metrics(folder, name="little"):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith("images_per_second")}
        for line in lines
    ]


def assert_same_weights(one, other):
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])


def test_train_writes_checkpoint_model_metrics_and_pictures(command, configs, files):
    code, _, _ = command("train.py", "little")
    assert code == 0
    names = set(files.all(configs))
    assert {CHECKPOINT, "saved_weights/final_result_little.model"} < names
    run = ("config.yaml", "metrics.jsonl", "samples.png", "reconstructions.png", "bits_per_dimension.png")
    assert {f"runs/little/{name}" for name in (*run, "kl_per_group.png", "evaluation.json")} < names
    last = metrics(configs)[-1]
    assert (last["epoch"], last["step"], last["images"]) == (2, 6, 48)
    assert {"elbo", "kl_per_group", "validation_elbo", "validation_bits_per_dimension"} <= last.keys()
    assert command("train.py", "little").code == 0  # a finished run
    assert metrics(configs)[-1] == last


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_again_ends_where_one_run_ends(command, configs, monkeypatch):
    command("train.py", "little", *sets(epochs=1))
    command("train.py", "little")
    two_runs, two_metrics = load(CHECKPOINT), metrics(configs)[-1]
    (configs / "whole").mkdir()
    monkeypatch.chdir(configs / "whole")
    command("train.py", configs / "model_configs" / "little.yaml")
    assert_same_weights(load(CHECKPOINT), two_runs)
    assert metrics(configs / "whole")[-1] == two_metrics


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_name_is_a_second_run_of_one_config(command, configs):
    command("train.py", "little", *sets(epochs=1))
    before = (configs / CHECKPOINT).read_bytes()
    assert command("train.py", "little", "--name", "little_2.5", *sets(epochs=1)).code == 0
    assert (configs / CHECKPOINT).read_bytes() == before
    assert load("saved_weights/little_2.5.checkpoint")["config"] == load(CHECKPOINT)["config"]
    assert len(metrics(configs, "little_2.5")) == 1
    assert command("sample.py", "little_2.5", "0.7", "0", "--count", "1").code == 0
    command("train.py", "little", "--name", "../x").assert_refused("--name")


@pytest.mark.slow
def test_train_fresh_keeps_the_earlier_files(command, configs):
    command("train.py", "little")
    earlier = (configs / CHECKPOINT).read_bytes()
    assert command("train.py", "little", "--fresh", *sets(epochs=1)).code == 0
    assert (configs / f"{CHECKPOINT}.1").read_bytes() == earlier
    assert (configs / "saved_weights" / "final_result_little.model.1").exists()
    assert (len(metrics(configs, "little.1")), len(metrics(configs))) == (2, 1)
    assert command("-m", "summary", f"{CHECKPOINT}.1").code == 0


ENDLESS = ("--set", "dataset.training_images=120", "--epochs", "100000")  # 30 steps an epoch
SAME_STEPS = sets(batch_size=4, learning_rate_schedule="constant", evaluation_samples=0, write_reconstruction=False)


@pytest.fixture
def start_training(start_process, configs, root, wait_until):
    """A function: start an endless training in a process; returns the process in its second epoch."""

    def start_training(*options):
        arguments = [root / "train.py", "little", "--device", "cpu", *SAME_STEPS, *ENDLESS, *options]
        process = start_process(*arguments, cwd=configs)
        log = configs / "runs" / "little" / "metrics.jsonl"
        wait_until(lambda: log.exists() and log.read_text(), process)
        return process

    return start_training


@pytest.fixture
def assert_equals_one_run(command, configs):
    """A function: assert that the run continues from a step as a run does that was never interrupted."""

    def assert_equals_one_run(step, *options):
        options = [*ENDLESS[:2], *SAME_STEPS, *options, "--epochs", step // 30 + 1]
        code, out, _ = command("train.py", "little", *options)
        assert code == 0 and f"step {step}" in out
        assert command("train.py", "little", "--name", "whole", *options).code == 0
        assert_same_weights(load(CHECKPOINT), load("saved_weights/whole.checkpoint"))
        assert metrics(configs) == metrics(configs, "whole")

    return assert_equals_one_run


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_train_stopped_by_a_signal_resumes_exactly(start_training, assert_equals_one_run, number, code):
    process = start_training()
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    step = load(CHECKPOINT)["training"]["progress"]["step"]
    assert step >= 30
    assert_equals_one_run(step)


@pytest.mark.slow
def test_train_killed_resumes_from_the_last_checkpoint(start_training, assert_equals_one_run):
    often = sets(images_per_checkpoint=40)
    process = start_training(*often)
    process.kill()
    process.wait()
    position = load(CHECKPOINT)["training"]["progress"]
    assert position["images_seen"] % 40 == 0
    assert_equals_one_run(position["step"], *often)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_that_diverges_ends_with_exit_code_3(command, configs, monkeypatch):
    monkeypatch.setattr(recovery, "MAX_EXCESS_SKIPS", 4)
    monkeypatch.setattr(recovery, "DOUBTFUL_SKIPS", 2)
    code, _, error = command("train.py", "little", *sets(epochs=4, gradient_skip_threshold=1e-9))
    assert code == 3
    assert len(error.strip().splitlines()) == 1
    assert "gradient_skip_threshold" in error
    kinds = [json.loads(line)["kind"] for line in (configs / "runs/little/events.jsonl").read_text().splitlines()]
    assert kinds == ["started", *["recovery"] * 3, "divergence"]
    assert load(CHECKPOINT)["training"]["recovery"]["count"] == 3
    assert command("train.py", "little").code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("output", ["| head -1", ">&- 2>&-", "> /dev/full 2>&1"])
def test_train_ends_well_when_its_output_goes_away(configs, root, output):
    line = f'"{sys.executable}" "{root / "train.py"}" little --device cpu {output}; exit ${{PIPESTATUS[0]}}'
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    result = subprocess.run(["bash", "-c", line], cwd=configs, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert len(metrics(configs)) == 2
    assert (configs / "saved_weights" / "final_result_little.model").is_file()
    assert (configs / "runs" / "little" / "kl_per_group.png").is_file()


@pytest.mark.slow
def test_train_debug_does_everything_and_keeps_nothing(command, configs, files, monkeypatch):
    seen, images = [], []
    remove, draw = shutil.rmtree, run_output.draw_reconstructions
    monkeypatch.setattr(
        run_output, "draw_reconstructions", lambda model, data, *a: images.append(data) or draw(model, data, *a)
    )

    def look(folder, *arguments, **options):
        seen.extend(path.name for path in Path(folder).rglob("*") if path.is_file())
        remove(folder, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    before = files.all(configs)
    changes = sets(epochs=50, batch_size=3, images_per_checkpoint=1, evaluate_quality_every=1)
    code, _, error = command("train.py", "little", "--debug", *changes)
    assert code == 0, error
    assert {"little.checkpoint", "final_result_little.model", "little.best.checkpoint", "report.html"} <= set(seen)
    assert {"samples.png", "reconstructions.png", "evaluation.json", "evaluation.png", "metrics.jsonl"} <= set(seen)
    assert seen.count("step_00000002.png") == 1
    assert (len(images[0].training), len(images[0].validation)) == (6, 6)
    assert files.all(configs) == before


def test_train_debug_that_fails_keeps_nothing(command, configs, files, monkeypatch):
    def fail(*_):
        raise UserError("no weights")

    before = files.all(configs)
    monkeypatch.setattr(Trainer, "step", fail)
    assert command("train.py", "little", "--debug").code == 2
    assert files.all(configs) == before


@pytest.mark.parametrize("name", available_configs())
def test_train_debug_has_rates_with_every_config(name):
    schedule = load_config(name).training_parameters.of_one_epoch()
    position = Position(schedule, 2 * schedule.batch_size)
    for _ in range(2):
        rate = rates(position, [], Recovery(), True)
        assert all(math.isfinite(value) for value in rate)
        position.advance(position.batch_size, False)
    assert position.completes(1)


@pytest.mark.slow
def test_train_dry_run_writes_nothing(command, configs, files):
    before = files.all(configs)
    for changes in ("spectral_normalization=True", "style=nvlabs", "weight_normalization=exponential"):
        code, out, _ = command("train.py", "little", "--dry-run", "--set", changes, "--set", "num_flows=1")
        assert code == 0
        assert "GFLOP" in out
    assert files.all(configs) == before


# ------------------------------------------------------------------------------------------ options for the common keys

FACES = ("--set", "dataset.training_images=8", "--set", "dataset.validation_images=4")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_options_are_short_for_keys_of_the_config(command, configs):
    options = "--epochs 1 --batch-size 4 --learning-rate 2e-3 --latent-size 3 --sample-every 5 --workers 2 --no-wandb"
    assert command("train.py", "little", *sets(evaluation_samples=0, wandb="offline"), *options.split()).code == 0
    config = load(CHECKPOINT)["config"]
    schedule = config.training_parameters
    assert (schedule.epochs, schedule.batch_size, schedule.learning_rate, schedule.workers) == (1, 4, 2e-3, 2)
    assert (config.latent_size, schedule.epochs_per_checkpoint, schedule.wandb) == (3, 5, None)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_dataset_option_names_the_run_by_the_data_set(command, configs, files):
    assert command("train.py", "hvae", "--dataset", "toy_faces", *FACES, "--epochs", "1").code == 0
    assert "saved_weights/hvae_toy_faces.checkpoint" in files.all(configs)
    config = load("saved_weights/hvae_toy_faces.checkpoint")["config"]
    assert (config.input_dimension, config.sampling_method) == (32, "logistic_mixture")
    assert command("sample.py", "hvae_toy_faces", "0.7", "0", "--count", "1").code == 0
    assert command("train.py", "little", "--dataset", "toy_faces", "--name", "mine", *FACES, "--epochs", "1").code == 0
    assert "saved_weights/mine.checkpoint" in files.all(configs)


def pictures(folder):
    folder.mkdir()
    for i in range(6):
        Image.new("L", (9, 9), 40 * i).save(folder / f"{i}.png")


@pytest.mark.usefixtures("no_pictures")
def test_train_data_option_alone_is_a_folder_of_pictures(command, configs):
    name = "my pictures: 'old' # \u00e9"  # characters with a meaning in YAML
    pictures(configs / name)
    assert command("train.py", "little", "--data", name, "--epochs", "1").code == 0
    dataset = load("saved_weights/little_folder.checkpoint")["config"].dataset
    assert (dataset.name, dataset.path) == ("folder", name)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_data_option_keeps_a_data_set_with_files(command, configs):
    pictures(configs / "mine")
    _, out, _ = command("train.py", "nvae_mnist_small", "--data", "elsewhere", "--dry-run")
    assert "images from mnist" in out
    text = TINY_FOLDER.format((configs / "model_configs" / "little.yaml").read_text().partition("dataset:")[0])
    (configs / "model_configs" / "own.yaml").write_text(text)
    assert command("train.py", "own", "--data", "mine", "--epochs", "1").code == 0
    assert load("saved_weights/own.checkpoint")["config"].dataset.path == "mine"


TINY_FOLDER = "{}dataset: {{name: folder, validation_fraction: 0.3}}\ntraining_parameters: {{batch_size: 2}}\n"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_checkpoint_option_continues_a_file_or_a_run(command, configs):
    command("train.py", "little", *sets(evaluation_samples=0))
    whole = load(CHECKPOINT)
    command("train.py", "little", "--fresh", "--epochs", "1", *sets(evaluation_samples=0))
    for name, start in (("second", CHECKPOINT), ("third", "little")):
        options = ("--name", name, "--checkpoint", start, *sets(evaluation_samples=0))
        code, out, _ = command("train.py", "little", *options)
        assert code == 0
        assert "step 3" in out
        assert_same_weights(load(f"saved_weights/{name}.checkpoint"), whole)
    assert load(CHECKPOINT)["training"]["progress"]["epoch"] == 1


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["litle"], "litle.*little"),
        (["little", "--set", "latent_sise=3"], "latent_size"),
        (["little", "--set", "latent_size=many"], "latent_size"),
        (["little", "--set", "nonsense"], "nonsense"),
        (["little", "--set", "latent_size=" + "[" * 2000], "latent_size: got"),
        (["little", "--device", "abacus"], "abacus"),
        (["little", "--set", "dataset.name=folder"], "dataset"),
        (["bad"], "bad.yaml, line 3"),
        ([], "CONFIG"),
        (["little", "--nonsense"], "--nonsense"),
        (["little", "--dataset", "cifar01"], "cifar01.*Did you mean cifar10"),
        (["little", "--epochs", "many"], "training_parameters.epochs.*many"),
        (["little", "--epochs", "3, batch_size: 2"], "training_parameters.epochs"),
        (["little", "--learning-rate", "0"], "learning_rate"),
        (["little", "--workers", "0"], "workers"),
        (["little", "--data", "absent"], "absent.*does not exist"),
        (["little", "--data", "a\0b"], "dataset.path"),
        (["little", "--checkpoint", "absent.checkpoint"], "absent.checkpoint"),
    ],
)
def test_train_mistakes_are_one_line_and_write_nothing(command, configs, files, arguments, pattern):
    (configs / "model_configs" / "bad.yaml").write_text("channel_towers: 4\nlatent_size: [2\n")
    before = files.all(configs)
    command("train.py", *arguments).assert_refused(pattern)
    assert files.all(configs) == before


@pytest.mark.usefixtures("no_pictures")
def test_train_changed_config_names_the_key_and_keeps_the_checkpoint(command, configs):
    command("train.py", "little", *sets(epochs=1))
    before = (configs / CHECKPOINT).read_bytes()
    command("train.py", "little", "--set", "latent_size=3").assert_refused("latent_size.*2.*3.*--fresh")
    assert (configs / CHECKPOINT).read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("images", [24, 8])  # of 8: one step between two checkpoints
def test_train_diverged_weights_are_never_saved(command, configs, images):
    options = ["--set", f"dataset.training_images={images}"]
    command("train.py", "little", *options, *sets(epochs=1))
    before = (configs / CHECKPOINT).read_bytes()
    assert command("train.py", "little", *options, *sets(epochs=3, learning_rate=1e6, max_recoveries=0)).code == 3
    assert (configs / CHECKPOINT).read_bytes() == before
    assert command("train.py", "little", *options).code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_configs_with_a_dot_are_two_models(command, configs, files):
    for name in ("v1.5", "v1.6"):
        (configs / "model_configs" / f"{name}.yaml").write_bytes(
            (configs / "model_configs" / "little.yaml").read_bytes()
        )
        command("train.py", name, *sets(epochs=1))
    assert {"saved_weights/v1.5.checkpoint", "saved_weights/v1.6.checkpoint"} < set(files.all(configs))


@pytest.mark.slow
def test_train_continues_when_pictures_fail(command, configs):
    (configs / "runs" / "little" / "samples.png").mkdir(parents=True)
    assert command("train.py", "little").code == 0


@pytest.mark.slow
def test_train_without_write_reconstruction_draws_samples_only(command, files):
    command("train.py", "little", *sets(write_reconstruction=False, epochs=1, evaluation_samples=0))
    names = files.names("runs/little")
    assert "samples.png" in names
    assert not {"reconstructions.png", "evaluation.json"} & set(names)


@pytest.mark.usefixtures("no_pictures")
def test_train_names_a_broken_picture_and_leaves_it_out(command, configs):
    (configs / "dataset").mkdir()
    for i in range(9):
        Image.new("RGB", (8, 8), (i, i, i)).save(configs / "dataset" / f"{i}.png")
    try:
        (configs / "dataset" / os.fsdecode(b"\xff.png")).write_text("broken")
    except OSError:
        pytest.skip("this file system takes no such names")
    code, out, _ = command("train.py", "little", "--set", "dataset={name: folder}", *sets(epochs=1))
    assert code == 0
    assert "1 of 10" in out


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_evaluates_the_result_once(command, configs):
    file = configs / "runs" / "little" / "evaluation.json"
    command("train.py", "little", *sets(evaluation_samples=3))
    first = file.read_bytes()
    evaluation = json.loads(first)
    assert (evaluation["images"], evaluation["samples"], evaluation["step"]) == (8, 3, 6)
    assert evaluation["elbo"]["mean"] < evaluation["log_likelihood"]["mean"] < 0
    command("train.py", "little", *sets(evaluation_samples=3))
    assert file.read_bytes() == first
    command("train.py", "little", *sets(evaluation_samples=4))
    assert json.loads(file.read_text())["samples"] == 4


# ------------------------------------------------------------------------------------ checkpoints that are always found


@pytest.mark.slow
def test_train_of_a_run_that_is_trained_is_refused_with_the_process(command, configs):
    with run_lock(configs / "saved_weights" / "little.lock", "little", pytest.fail):
        command("train.py", "little").assert_refused(rf"process {os.getpid()} on host .*--name NAME")
        command("train.py", "little", "--fresh").assert_refused("--name NAME")
        assert command("train.py", "little", "--dry-run").code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_and_sample_find_the_best_and_the_previous_checkpoint(command, configs, files):
    assert command("train.py", "little", *sets(keep_every=1, evaluation_samples=0)).code == 0
    for name in ("little.best", "little.epoch_0001", f"{CHECKPOINT}.previous"):
        assert command("sample.py", name, "0.7", "0", "--count", "1").code == 0
    assert any("little.epoch_0001" in name for name in files.names())
    whole, damaged = (configs / CHECKPOINT).read_bytes(), (configs / CHECKPOINT).read_bytes()[:-1000]
    (configs / CHECKPOINT).write_bytes(damaged)
    command("sample.py", "little", "0.7", "0").assert_refused(rf"{CHECKPOINT}\.previous")
    code, out, _ = command("train.py", "little", *sets(evaluation_samples=0))
    assert code == 0 and out.count("warning:") == 1
    assert (configs / f"{CHECKPOINT}.damaged").read_bytes() == damaged
    assert_same_weights(load(CHECKPOINT), torch.load(io.BytesIO(whole), weights_only=True))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_with_both_checkpoints_damaged_says_how_to_go_on(command, configs):
    command("train.py", "little", *sets(epochs=3, keep_every=1, evaluation_samples=0))
    for path in (CHECKPOINT, f"{CHECKPOINT}.previous", "saved_weights/little.best.checkpoint"):
        (configs / path).write_bytes(b"PK" + bytes(1000))
    result = command("train.py", "little")
    result.assert_refused(r"little\.epoch_0001\.checkpoint.*--fresh --checkpoint FILE")
    assert result.error.count("--fresh") == 1
    options = ("--fresh", "--checkpoint", "saved_weights/little.epoch_0001.checkpoint", "--epochs", "1")
    assert command("train.py", "little", *options, *sets(evaluation_samples=0)).code == 0


@pytest.mark.slow
def test_train_continues_a_run_by_its_name_with_the_config_of_the_run(command, configs):
    """The run differs from every config file in the data set, the size and the name."""
    given = ("--name", "emoji", "--set", "latent_size=3", "--set", "dataset.training_images=16", "--epochs", 1)
    assert command("train.py", "little", *given).code == 0
    assert command("train.py", "emoji", "--epochs", 2).code == 0
    content = load("saved_weights/emoji.checkpoint")
    assert (content["run"], content["training"]["progress"]["step"], content["config"].latent_size) == ("emoji", 4, 3)
    os.unlink("saved_weights/emoji.checkpoint")  # then the one before counts
    assert command("train.py", "emoji", "--dry-run").code == 0
    command("train.py", "emoji", "--set", "latent_size=4").assert_refused("latent_size")
    command("train.py", "emoj").assert_refused("emoj")


@pytest.mark.parametrize("path", ["pictures", "pictures.zip"])
def test_train_hints_at_data_for_a_folder_or_an_archive_of_pictures(command, folder, path):
    (folder / "pictures").mkdir()
    (folder / "pictures.zip").touch()
    command("train.py", path).assert_refused("--data")
