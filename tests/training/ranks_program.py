"""A process of several: does the tasks in a file, and saves the results. Started by test_ranks.py.

Arguments: the file of the tasks by name, a .pt dictionary; index, count.
"""

import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist

from nvae.config import config_from_dict
from nvae.data.images import Data
from nvae.evaluation.likelihood import evaluate
from nvae.system.ranks import Ranks
from nvae.training.resuming import calibrate
from nvae.training.run_output import model_for_pictures
from nvae.training.trainer import Trainer
from nvae.training.validation import share_statistics


def main() -> None:
    file, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # one of PyTorch's would be on the screen of every training
    dist.init_process_group("gloo", init_method=f"file://{file}.store", rank=index, world_size=count)
    tasks, ranks = torch.load(file, weights_only=True), Ranks(index, count)
    torch.save({name: results(task, ranks) for name, task in tasks.items()}, f"{file}.{index}")
    dist.destroy_process_group()
    os._exit(0)  # without the seconds of the interpreter's end


def results(task: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Train some steps and validate; return metrics, weights and statistics."""
    config = config_from_dict(task["config"], "the task")
    trainer = Trainer(config, Data(task["training"], task["validation"]), torch.device("cpu"), ranks)
    calibrate(trainer)
    metrics = [trainer.step(next(trainer.batches())) for _ in range(task["steps"])]
    share_statistics(trainer)
    validation = evaluate(trainer.eval_model, task["validation"], batch_size=2, samples=2, ranks=ranks).to_dict()
    return {
        "metrics": [{key: torch.as_tensor(value).tolist() for key, value in line.items()} for line in metrics],
        "validation": validation,
        "weights": trainer.model.state_dict(),
        "eval_weights": trainer.eval_model.state_dict(),
        "regularizers": trainer.regularizers.state_dict(),
        "pictures": model_for_pictures(trainer).state_dict(),
    }


if __name__ == "__main__":
    main()
