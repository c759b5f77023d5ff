import pytest
import torch
from PIL import Image

from nvae.summary import cost_per_image
from nvae.training import estimate
from nvae.training.estimate import SAMPLE, SAMPLES, Counts, Speed, count_images, measure_step
from nvae.training.trainer import Trainer

CPU = torch.device("cpu")


def test_count_images_of_each_kind_of_data_set(make_config, tmp_path):
    toy = make_config(dataset={"name": "toy_faces", "training_images": 70, "validation_images": 9})
    assert count_images(toy) == (70, 9, 9)
    assert count_images(make_config(dataset={"name": "cifar10"})) == (50_000, 10_000, 10_000)
    held_out = make_config(dataset={"name": "cifar10", "validation_images": 5000})
    assert count_images(held_out) == (45_000, 5000, 10_000)
    folder = make_config(dataset={"name": "folder", "path": str(tmp_path / "photos"), "validation_fraction": 0.25})
    assert count_images(folder) is None
    (tmp_path / "photos").mkdir()
    for index in range(8):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{index}.png")
    assert count_images(folder) == (6, 2, 2)
    last = {"validation_images": 3, "validation_choice": "last"}
    assert count_images(make_config(dataset=folder.dataset.model_dump() | last)) == (5, 3, 3)
    assert count_images(make_config(dataset={"name": "npz", "path": "none.npz"})) is None


@pytest.mark.parametrize(
    ("schedule", "checkpoints"),
    [
        ({"epochs_per_checkpoint": 2}, 5),
        ({"epochs_per_checkpoint": None}, 1),
        ({"epochs_per_checkpoint": 5, "images_per_checkpoint": 96}, 10),
    ],
)
def test_estimate_counts_steps_validations_pictures_and_the_evaluation(make_config, schedule, checkpoints):
    schedule = schedule | {"epochs": 10, "batch_size": 8, "evaluation_samples": 4}
    config = make_config(training_parameters=schedule)
    whole = estimate.estimate(config, Counts(100, 20, 30), Speed(0.3, 8))
    assert whole.steps == 10 * 12
    other = 0.1 * (checkpoints * (20 + SAMPLE * SAMPLES) + 30 * 4)
    assert whole.other_seconds == pytest.approx(other)
    assert whole.seconds == pytest.approx(120 * 8 * 0.3 + other)
    config = make_config(training_parameters=schedule | {"max_steps_per_epoch": 3})
    assert estimate.estimate(config, Counts(100, 20, 30), Speed(0.3, 8)).steps == 10 * 3
    small = estimate.estimate(config, Counts(5, 1, 1), Speed(0.3, 5))  # a batch is the whole data set
    assert small.steps == 10 and small.seconds - small.other_seconds == pytest.approx(10 * 5 * 0.3)


@pytest.fixture
def slow_steps(monkeypatch):
    """Time passes in steps and forward passes only. Lists: the seconds per image, the images of each step, the time."""
    now, steps, per_image = [0.0], [], [0.0]

    def step(trainer, images_u8):
        steps.append(len(images_u8))
        now[0] += len(images_u8) * per_image[0]

    def forward(trainer, images_u8):
        now[0] += per_image[0] / 3
        return per_image[0] / 3

    monkeypatch.setattr(estimate.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(estimate, "_forward_seconds", forward)
    return per_image, steps, now


@pytest.mark.parametrize(
    ("seconds", "images", "steps"),
    [
        (0.001, 64, [2, 2, 2, 8, 8, 32, 32, 64, 64]),
        (0.2, 8, [2, 2, 2, 8, 8]),  # 32 images would take too long
        (2.0, 2, [2, 2, 2]),
        (9.0, 0, []),
    ],
)
def test_measure_step_takes_as_many_images_as_time_allows(make_config, slow_steps, seconds, images, steps):
    slow_steps[0][0] = seconds
    config = make_config(training_parameters={"batch_size": 128, "gradient_accumulation": 2})
    speed = measure_step(config, CPU, cost_per_image(config))
    assert speed.images == images and speed.seconds_per_image == pytest.approx(seconds)
    assert slow_steps[1] == steps
    assert slow_steps[2][0] < 20


def test_measure_step_takes_no_more_images_than_the_memory_allows(make_config, slow_steps, monkeypatch):
    monkeypatch.setattr(estimate, "memory_warning", lambda config, images, *_: "too much" if images > 8 else None)
    config = make_config(training_parameters={"batch_size": 64})
    assert measure_step(config, CPU, cost_per_image(config)).images == 8


def test_measure_step_of_a_real_model(make_config):
    config = make_config(training_parameters={"batch_size": 4})
    speed = measure_step(config, CPU, cost_per_image(config))
    assert speed.images == 4 and speed.seconds_per_image > 0


def test_measure_step_of_a_config_whose_parts_are_small(make_config):
    """With batch norms over 1 x 1 values, the measured parts of a batch have more than one image, as in training."""
    schedule = {"batch_size": 16, "gradient_accumulation": 8}
    config = make_config(input_dimension=4, number_of_scales=2, num_blocks_prepost=1, training_parameters=schedule)
    assert measure_step(config, CPU, cost_per_image(config)).images == 2
