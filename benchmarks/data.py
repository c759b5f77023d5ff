"""Measure images per second of the data, relative to a plain copy of the same bytes and to a training step.

    python3 benchmarks/data.py [--config quickstart] [--gib 1] [--pictures 1000] [--sizes 32 64] [--device cpu]

Yardsticks of the same run: consecutive batches copied in memory by NumPy, and the images that a training step of the
config consumes. Batches are drawn in random order: from memory, streamed from a file of the cache that is in the
system's cache of files (warm), and from a file that has to be read from the disk (cold). Decoding is that of a folder
of pictures of 256 x 256 pixels in one process. Then the memory of the process (its resident set) while streaming a set
of --gib GiB, four times the memory limit. Writes into a temporary folder. Prints tables and a line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from clock import seconds
from PIL import Image

from nvae.config import load_config
from nvae.data.batches import BatchSource
from nvae.data.cache import CachedImages
from nvae.data.images import Data
from nvae.data.registry import load_data
from nvae.data.training_images import epoch_order
from nvae.system.devices import choose_device, set_fast_defaults
from nvae.system.memory_maps import release_pages
from nvae.training.trainer import Trainer

BATCH = 64
SIDE = 256  # of a picture file
LIMIT_SHARE = 4  # the streamed set is larger than the memory limit by this factor


def memory():
    """Return the resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cached(size, num_bytes):
    """Return random images in a file of the cache, and the file."""
    shape = (num_bytes // (3 * size**2), 3, size, size)
    chunk = np.random.default_rng(0).integers(0, 256, (BATCH, *shape[1:]), np.uint8)

    def fill(images_u8):
        for first in range(0, len(images_u8), BATCH):
            images_u8[first : first + BATCH] = chunk[: len(images_u8) - first]
        release_pages()
        return ""

    file = CachedImages(f"benchmark_{size}", "images")
    file.write(shape, fill)
    return torch.from_numpy(file.read(shape)[0]), file.path


def forget(file):
    """Remove a file from the system's cache of files."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stream(source, order, after_batch=lambda: None):
    """Use batches of all images in an order; return images per second."""
    order = order[: len(order) // BATCH * BATCH]
    start = time.perf_counter()
    for images_u8 in source.batches(order.split(BATCH)):
        last = images_u8
        after_batch()
    last.sum().item()
    return len(order) / (time.perf_counter() - start)


def copied(images_u8):
    """Return images per second of copying consecutive batches of an array."""
    target = np.empty_like(images_u8[:BATCH])
    count = len(images_u8) // BATCH

    def work():
        for first in range(0, count * BATCH, BATCH):
            np.copyto(target, images_u8[first : first + BATCH])

    return count * BATCH / seconds(work)


def decoded(size, kind, count):
    """Return images per second of decoding a folder of pictures for the first time, and the bytes of a file."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            small = Image.fromarray(random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8))
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(Path(folder, f"{number}.{kind}"))
        config = load_config("hvae", ["dataset.name=folder", f"dataset.path={folder}", f"input_dimension={size}"])
        start = time.perf_counter()
        load_data(config, cache=True)
        rate = count / (time.perf_counter() - start)
        return rate, sum(file.stat().st_size for file in Path(folder).iterdir()) / count


def training(name, size, device):
    """Return images per second of training steps."""
    config = load_config(name, [f"input_dimension={size}"])
    count = config.training_parameters.batch_size
    images_u8 = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    trainer = Trainer(config, Data(images_u8, images_u8), device)
    return count / seconds(lambda: trainer.step(images_u8)["loss"].item())


def measure(size, options, device):
    num_bytes = int(options.gib * 2**30)
    images_u8, file = cached(size, num_bytes)
    order = epoch_order(len(images_u8), load_config("quickstart"), 0)
    row = {"size": size, "images": len(images_u8)}
    source = BatchSource(images_u8, device)
    assert not source.is_resident
    release_pages()
    before, seen = memory(), []
    stream(source, order, lambda: seen.append(memory()))
    row |= {"memory_before": before, "memory_peak": max(seen), "memory_after": memory()}
    row["set"] = images_u8.numel() / 2**20
    row["warm"] = max(stream(source, order) for _ in range(3))
    forget(file)
    row["cold"] = stream(source, order[: len(order) // 8])
    part = images_u8[: int(len(images_u8) / LIMIT_SHARE)].clone()  # of the memory limit
    row["copy"] = copied(part.numpy())
    source = BatchSource(part, device)
    assert source.is_resident
    row["memory"] = max(stream(source, epoch_order(len(part), load_config("quickstart"), 0)) for _ in range(3))
    for kind in ("jpg", "png"):
        row[kind], row[f"{kind}_bytes"] = decoded(size, kind, options.pictures)
    row["training"] = training(options.config, size, device)
    file.unlink()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--device")
    options = parser.parse_args()
    set_fast_defaults()
    device = choose_device(options.device)
    os.environ["NVAE_MEMORY_LIMIT"] = str(options.gib / LIMIT_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NVAE_CACHE"] = folder
        rows = [measure(size, options, device) for size in options.sizes]
    print(f"batches of {BATCH} images on {device}: images per second, share of a plain copy, times a training step")
    names = {
        "copy": "plain copy",
        "memory": "in memory",
        "warm": "streamed, warm",
        "cold": "streamed, cold",
        "jpg": f"decoded, JPEG of {SIDE} x {SIDE}",
        "png": f"decoded, PNG of {SIDE} x {SIDE}",
        "training": f"training step of {options.config}",
    }
    for row in rows:
        for key, name in names.items():
            share, times = row[key] / row["copy"], row[key] / row["training"]
            print(f"{row['size']:3} pixels  {name:32} {row[key]:12,.0f} {share:9.2%} {times:10,.1f}")
    for row in rows:
        print(
            f"{row['size']:3} pixels  memory while streaming {row['set']:,.0f} MiB: before {row['memory_before']:,.0f} "
            f"MiB, at most {row['memory_peak']:,.0f} MiB, after {row['memory_after']:,.0f} MiB"
        )
    print(json.dumps({"device": str(device), "cores": os.cpu_count(), "batch_size": BATCH, "rows": rows}))


if __name__ == "__main__":
    main()
