"""Several processes train as one does. The processes are real ones, with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvae.system.ranks import Ranks

from .helpers import DVP, LADDER, NVLABS, TOY_FACES
from .ranks_program import results

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
def task(make_config, schedule, data):
    """A function: what the processes of ranks_program.py do."""

    def task(name):
        model, changes = MODELS[name]
        config = make_config(**model, training_parameters=schedule | changes)
        images = {"training": data.training, "validation": data.validation}
        return images | {"config": config.model_dump(), "steps": 4}

    return task


@pytest.fixture
def results_of(tmp_path, root):
    """A function: the results of each of `count` processes."""

    def results_of(task, count):
        file = tmp_path / "task.pt"
        torch.save(task, file)
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen([sys.executable, str(PROGRAM), str(file), str(index), str(count)], env=environment)
            for index in range(count)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0] * count
        return [torch.load(f"{file}.{count}.{index}", weights_only=True) for index in range(count)]

    return results_of


def assert_close(actual, expected, key=""):
    """Compare nested results: tensors of weights to 1e-4, metrics to 2e-4."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert_close(actual[name], value, f"{key}.{name}")
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{key}: {text}")
    elif isinstance(expected, list) and isinstance(expected[0], dict):
        for i, value in enumerate(expected):
            assert_close(actual[i], value, f"{key}.{i}")
    else:
        assert actual == (expected if isinstance(expected, str) else pytest.approx(expected, rel=2e-4, abs=2e-5)), key


@pytest.mark.parametrize(
    ("name", "count"), [("nvae", 2), ("nvae", 3), ("nvae_parts", 3), ("ladder", 2), ("ladder", 3), ("dvp", 2)]
)
def test_ranks_train_as_one_process(task, results_of, name, count):
    expected, ranks = results(task(name), Ranks()), results_of(task(name), count)
    for rank in ranks:
        assert_close(rank, expected)
    for rank in ranks[1:]:
        for part in ("weights", "eval_weights", "regularizers"):
            assert all(torch.equal(rank[part][key], ranks[0][part][key]) for key in rank[part])


def test_ranks_without_synchronized_batch_norms_share_the_statistics_of_the_first(task, results_of):
    changed = task("nvae")
    changed["config"]["training_parameters"]["sync_batch_norm"] = False
    first, second = results_of(changed, 2)
    assert first["validation"] == second["validation"]
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert first["metrics"] != results(task("nvae"), Ranks())["metrics"]


def test_shares_of_the_ranks_are_disjoint_and_complete():
    for count in (1, 2, 3, 5):
        for start, stop in ((0, 5), (5, 12), (3, 8)):
            shares = [Ranks(index, count).share(start, stop) for index in range(count)]
            assert [
                i for share in shares for i in range(start, stop)[share.start - start : share.stop - start]
            ] == list(range(start, stop))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1
