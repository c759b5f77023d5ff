"""Several processes train as one does. The processes are real ones, with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .helpers import DVP, LADDER, NVLABS, TOY_FACES

PROGRAM = Path(__file__).with_name("ranks_program.py")
EVERYTHING = {
    "regularization_constant": 0.1,
    "kl_balancing": True,
    "gradient_clipping": 50.0,
    "ema_decay": 0.5,
    "warmup_epochs": 10.0,
    "batch_size": 6,
    "learning_rate": 1e-3,
}
MODELS = {
    "nvae": (NVLABS | {"dataset": TOY_FACES | {"horizontal_flip": True, "random_crop": 2}}, EVERYTHING),
    "nvae_parts": (NVLABS, EVERYTHING | {"gradient_accumulation": 2, "ema_decay": None}),
    "ladder": (
        LADDER | {"sampling_method": "bernoulli", "dataset": TOY_FACES | {"binarize": True}},
        EVERYTHING | {"regularization_constant": 0.0},
    ),
    "dvp": (DVP | {"unet_dropout": 0.0}, EVERYTHING | {"regularization_constant": 0.0, "kl_balancing": False}),
}


@pytest.fixture
def train_with(make_config, schedule, data, tmp_path, root):
    """A function: what each of `count` ranks has after some steps of a config."""

    def train_with(count, model, changes, steps=4):
        config = make_config(**model, training_parameters=schedule | changes)
        file = tmp_path / "task.pt"
        task = {"config": config.model_dump(), "steps": steps}
        torch.save(task | {"training": data.training, "validation": data.validation}, file)
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([sys.executable, str(PROGRAM), str(file), str(index), str(count)], env=environment)
            for index in range(count)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0] * count
        return [torch.load(f"{file}.{count}.{index}", weights_only=True) for index in range(count)]

    return train_with


def assert_same(actual, expected, scale):
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_train_as_one_process(train_with, name, count):
    model, changes = MODELS[name]
    (one,) = train_with(1, model, changes)
    ranks = train_with(count, model, changes)
    for rank in ranks:
        for line, expected in zip(rank["metrics"], one["metrics"], strict=True):
            for key, value in expected.items():
                assert line[key] == pytest.approx(value, rel=2e-4, abs=1e-5), key
        for part in ("weights", "eval_weights", "regularizers", "pictures"):
            assert_same(rank[part], one[part], scale=10)
    for rank in ranks[1:]:
        for part in ("weights", "eval_weights", "regularizers"):
            assert all(torch.equal(rank[part][key], ranks[0][part][key]) for key in rank[part])
