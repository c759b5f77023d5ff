"""Several processes train as one does. The processes are real ones, with gloo."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvae.system.ranks import Ranks

from .helpers import DVP, LADDER, NVLABS, TOY_FACES, VDVAE
from .ranks_program import results

PROGRAM = Path(__file__).with_name("ranks_program.py")
EVERYTHING = {
    "regularization_constant": 0.1,
    "kl_balancing": True,
    "gradient_clipping": 50.0,
    "ema_decay": 0.5,
    "epochs": 3,
    "warmup_epochs": 10.0,
    "batch_size": 6,
    "learning_rate": 1e-3,
}
FLIPPED_NVAE = NVLABS | {"dataset": TOY_FACES | {"horizontal_flip": True, "random_crop": 2}}
MODELS = {
    "nvae": (FLIPPED_NVAE, EVERYTHING),
    "nvae_parts": (NVLABS, EVERYTHING | {"gradient_accumulation": 2, "ema_decay": None}),
    "nvae_statistics_of_the_first": (FLIPPED_NVAE, EVERYTHING | {"sync_batch_norm": False}),
    "ladder": (
        LADDER | {"sampling_method": "bernoulli", "dataset": TOY_FACES | {"binarize": True}},
        EVERYTHING | {"regularization_constant": 0.0},
    ),
    "vdvae": (VDVAE, EVERYTHING | {"regularization_constant": 0.0, "loss_scale": "nats"}),
    "dvp": (DVP | {"unet_dropout": 0.0}, EVERYTHING | {"regularization_constant": 0.0, "kl_balancing": False}),
    "dvp_pretraining": (
        DVP | {"unet_dropout": 0.0},
        EVERYTHING
        | {"regularization_constant": 0.0, "pretrain_prior_epochs": 1, "gradient_accumulation": 2}
        | {"kl_balancing": False, "optimizer_epsilon": 1e-3},  # larger than gradients that are 0 but for rounding
    ),
}
TASKS = {
    2: ["nvae", "nvae_statistics_of_the_first", "ladder", "vdvae", "dvp", "dvp_pretraining"],
    3: ["nvae", "nvae_parts", "ladder"],
}
SECONDS = 300  # after which processes that wait for each other are killed


@pytest.fixture(scope="module")
def task(make_config):
    """A function: what the processes of ranks_program.py do for a name of MODELS: four steps on fourteen images."""

    def task(name):
        images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        model, training_parameters = MODELS[name]
        config = make_config(**model, training_parameters=training_parameters)
        return {"training": images[:14], "validation": images[14:], "config": config.model_dump(), "steps": 4}

    return task


@pytest.fixture(scope="module")
def results_of(task, tmp_path_factory, root):
    """A function: the results of TASKS by name, of each of `count` processes, which start once for all tests."""

    @functools.cache
    def results_of(count):
        file = tmp_path_factory.mktemp(f"ranks{count}") / "tasks.pt"
        torch.save({name: task(name) for name in TASKS[count]}, file)
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, str(PROGRAM), str(file)]
        processes = [subprocess.Popen([*arguments, str(index), str(count)], env=environment) for index in range(count)]
        try:
            assert [process.wait(SECONDS) for process in processes] == [0] * count
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [torch.load(f"{file}.{index}", weights_only=True) for index in range(count)]

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nvae", 2),
        ("nvae", 3),
        ("nvae_parts", 3),
        ("ladder", 2),
        ("ladder", 3),
        ("vdvae", 2),
        ("dvp", 2),
        ("dvp_pretraining", 2),
    ],
)
def test_ranks_train_as_one_process(task, results_of, name, count):
    expected, ranks = results(task(name), Ranks()), [rank[name] for rank in results_of(count)]
    for rank in ranks:
        assert_close(rank, expected)
    for rank in ranks[1:]:
        for part in ("weights", "eval_weights", "regularizers"):
            assert all(torch.equal(rank[part][key], ranks[0][part][key]) for key in rank[part])


@pytest.mark.slow
def test_ranks_without_synchronized_batch_norms_share_the_statistics_of_the_first(task, results_of):
    first, second = (rank["nvae_statistics_of_the_first"] for rank in results_of(2))
    assert first["validation"] == second["validation"]
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert first["metrics"] != results(task("nvae"), Ranks())["metrics"]


WAITING = """
import datetime, os, sys, time
import torch.distributed as dist
from nvae.system.ranks import Ranks
index = int(sys.argv[1])
second = datetime.timedelta(seconds=1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=index, world_size=2, timeout=second)
ranks = Ranks(index, 2)
ranks.wait()
if ranks.is_first:
    time.sleep(2.5)
ranks.wait()
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.slow
def test_ranks_wait_for_the_first_one_longer_than_a_message_may_take(tmp_path, root):
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    arguments = [[sys.executable, "-c", WAITING, str(index), str(tmp_path / "store")] for index in range(2)]
    processes = [subprocess.Popen(each, env=environment) for each in arguments]
    try:
        assert [process.wait(SECONDS) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_shares_of_the_ranks_are_disjoint_and_complete():
    for count in (1, 2, 3, 5):
        for start, stop in ((0, 5), (5, 12), (3, 8)):
            shares = [Ranks(index, count).share(start, stop) for index in range(count)]
            assert [
                i for share in shares for i in range(start, stop)[share.start - start : share.stop - start]
            ] == list(range(start, stop))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1
