"""A process of several: trains the config in a file and saves what came out. Started by test_ranks.py.

Arguments: the file of the task, a .pt dictionary; index, count.
"""

import os
import sys

import torch
import torch.distributed as dist

from nvae.config import config_from_dict
from nvae.data.images import Data
from nvae.ranks import Ranks
from nvae.training.trainer import Trainer


def main() -> None:
    file, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    task = torch.load(file, weights_only=True)
    config = config_from_dict(task["config"], file)
    data = Data(task["training"], task["validation"])
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{file}.{count}.store", rank=index, world_size=count)
    trainer = Trainer(config, data, torch.device("cpu"), Ranks(index, count))
    trainer.calibrate()
    metrics = [trainer.step(next(trainer.batches())) for _ in range(task["steps"])]
    lines = [{key: torch.as_tensor(value).tolist() for key, value in line.items()} for line in metrics]
    result = {
        "metrics": lines,
        "weights": trainer.model.state_dict(),
        "eval_weights": trainer.eval_model.state_dict(),
        "regularizers": trainer.regularizers.state_dict(),
        "pictures": trainer.model_for_pictures().state_dict(),
    }
    torch.save(result, f"{file}.{count}.{index}")
    if count > 1:
        dist.destroy_process_group()
    os._exit(0)  # without the seconds of the interpreter's end


main()
