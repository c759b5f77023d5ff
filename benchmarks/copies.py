"""Measure the search for copies: planted copies that are found, and held-out images and noise that are called copies.

    python3 benchmarks/copies.py SET[=FOLDER] ... [--images 1000]

SET: a data set, such as mnist or toy_faces, or folder=PICTURES. Held out is the test part, or the validation part;
of fewer than 200 held-out images, every training image is compared with the others instead. Prints a row per set, and
the rows of simple pictures against 10 to 1,000 others: rectangles and stripes on plain backgrounds. Needs no model.
"""

import argparse
import io
import time

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from nvae.config import load_config
from nvae.data.registry import load_original_images
from nvae.evaluation.quality.copies import find_copies, thumbnails_of

QUALITIES = (75, 90)
MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def noisy(images_u8, sigma, generator):
    noise = torch.randn(images_u8.shape, generator=generator)
    return (images_u8.float() + 255 * sigma * noise).round().clamp(0, 255).byte()


def moved(images_u8, y, x):
    size = images_u8.shape[-1]
    padded = functional.pad(images_u8.float(), (1, 1, 1, 1), mode="replicate").byte()
    return padded[:, :, 1 + y : 1 + y + size, 1 + x : 1 + x + size]


def jpeg(images_u8, quality):
    result = []
    for pixels in images_u8.permute(0, 2, 3, 1).numpy():
        Image.fromarray(pixels.squeeze()).save(file := io.BytesIO(), "JPEG", quality=quality)
        result.append(torch.from_numpy(np.array(Image.open(file))).reshape(pixels.shape).permute(2, 0, 1))
    return torch.stack(result)


def planted(images_u8, generator):
    """Yield the kinds of copies, and copies of each kind."""
    yield "exact", images_u8
    yield "moved", torch.cat([moved(part, *MOVES[i % 8]) for i, part in enumerate(images_u8.split(1))])
    yield "noise 0.02", noisy(images_u8, 0.02, generator)
    yield "moved, noise", noisy(moved(images_u8, 1, -1), 0.02, generator)
    for quality in QUALITIES:
        yield f"JPEG {quality}", jpeg(images_u8, quality)


def held_out(data, count, generator):
    """Return the difference of held-out images to their nearest training images, and the seconds per 1,000."""
    part = data.validation if data.test is None else data.test
    chosen = part[torch.randperm(len(part), generator=generator)[:count]]
    start = time.perf_counter()
    if len(chosen) >= 200:
        difference = find_copies(thumbnails_of(chosen), data.training).difference
    else:
        chosen = data.training
        every = torch.ones(len(chosen), dtype=torch.bool)
        difference = torch.cat(
            [
                find_copies(
                    thumbnails_of(chosen[i : i + 1]), chosen[every.index_fill(0, torch.tensor(i), False)]
                ).difference
                for i in range(len(chosen))
            ]
        )
    return difference, 1000 * (time.perf_counter() - start) / len(chosen)


def simple(i):
    """Return a plain background with a rectangle and a stripe, (1, 16, 16)."""
    rng = np.random.default_rng(i)
    image = np.full((16, 16), rng.integers(0, 255), np.uint8)
    image[3:10, 3:12] = rng.integers(0, 255)
    image[i % 12 : i % 12 + 2] = rng.integers(0, 255)
    return image[None]


def report(name, difference):
    copies, equal = int((difference < 1).sum()), int((difference == 0).sum())
    low, median = difference[difference > 0].quantile(torch.tensor([0.0, 0.5])).tolist()
    text = f"{copies} of {len(difference)}, of these {equal} equal; smallest other {low:.2f}, median {median:.2f}"
    print(f"    {name}: {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    for entry in options.sets:
        name, _, folder = entry.partition("=")
        gray = name in ("mnist", "fashion_mnist")
        overrides = [f"dataset.name={name}", *([f"dataset.path={folder}"] if folder else [])]
        data = load_original_images(load_config("nvae_mnist_small" if gray else "quickstart", overrides))
        print(f"{entry}: {len(data.training):,} training images of {data.training.shape[-1]}x{data.training.shape[-1]}")
        difference, seconds = held_out(data, options.images, generator)
        report("held out", difference)
        print(f"    {seconds:.1f} s per 1,000 images")
        chosen = data.training[torch.randperm(len(data.training), generator=generator)[: options.images]]
        for kind, copies in planted(chosen, generator):
            found = find_copies(thumbnails_of(copies), data.training)
            print(f"    {kind}: {100 * found.count / len(copies):.2f} % found, largest {found.difference.max():.2f}")
        for sigma in (0.02, 0.1, 0.3):
            noise = noisy(torch.full_like(chosen[:200], 128), sigma, generator)
            report(f"gray with noise {sigma}", find_copies(thumbnails_of(noise), data.training).difference)
    new = torch.from_numpy(np.stack([simple(i) for i in range(10**6, 10**6 + 1000)]))
    for count in (10, 29, 100, 1000):
        print(f"simple pictures: {count}")
        training = torch.from_numpy(np.stack([simple(i) for i in range(count)]))
        report("new", find_copies(new, training).difference)
        for sigma in (0.0, 0.02, 0.1):
            noise = noisy(torch.full((200, 1, 16, 16), 128, dtype=torch.uint8), sigma, generator)
            report(f"gray with noise {sigma}", find_copies(noise, training).difference)


if __name__ == "__main__":
    main()
