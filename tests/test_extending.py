"""docs/extending.md, followed word by word on a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n# (\S+?)(?:: (append|new file))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(recipe: str, package_root: Path) -> None:
    """Make the changes of a recipe's code blocks."""
    blocks = BLOCK.findall(recipe)
    assert blocks
    for language, path, action, code in blocks:
        file = package_root / path
        if action == "new file":
            file.parent.mkdir(exist_ok=True)
            assert not file.exists()
            file.write_text(code)
        elif action == "append":
            file.write_text(f"{file.read_text()}\n\n{code}")
        else:
            assert language == "diff"
            lines = code.splitlines()  # a sign, or a space for a line that stays
            old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
            new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
            assert file.read_text().count(old) == 1, f"the diff of {path} in docs/extending.md needs an update: {old}"
            file.write_text(file.read_text().replace(old, new))


TRAIN = """
import torch
from nvae.config import parse_config
from nvae.data.registry import load_data
from nvae.models.families import build_model
from nvae.objective import elbo_terms
from nvae.models.hierarchy import FromNoise
from nvae.data.images import to_float
torch.manual_seed(0)
config = parse_config(CONFIG)
images = to_float(load_data(config).training[:8], "cpu")
model = build_model(config)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
losses = []
for step in range(30):
    noise = model.draw_noise(8, torch.Generator().manual_seed(step), posterior=True)
    loss = -elbo_terms(model(images, noise), images).elbo.mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
drawn = model.top_down(FromNoise(model.draw_noise(2)), 2, mean_only=True).px_z.mean()
assert drawn.shape == (2, 3, 8, 8) and drawn.isfinite().all()
assert model.top_down(FromNoise(model.draw_noise(2)), 2).px_z.sample().isfinite().all()
"""
NETWORK = """
channel_towers: 4
number_of_scales: 1
initial_splits_per_scale: 1
latent_size: 2
input_dimension: 8
"""
TOY = "dataset: {name: toy_faces, training_images: 8, validation_images: 2}\n"
CHECKS = {
    "A likelihood": ("sampling_method: laplace\n" + NETWORK + TOY, TRAIN),
    "A data set": (NETWORK + "dataset: {name: stripes, images: 20}\n", TRAIN),
    "An optimizer": (
        NETWORK + TOY + "training_parameters: {optimizer: radam, epochs: 1, batch_size: 8, evaluation_samples: 0}\n",
        "import torch\nfrom nvae.config import parse_config\nfrom nvae.training.trainer import Trainer\n"
        "from nvae.data.registry import load_data\n"
        "config = parse_config(CONFIG)\ntrainer = Trainer(config, load_data(config), torch.device('cpu'))\n"
        "assert type(trainer.optimizer) is torch.optim.RAdam\n"
        "trainer.step(trainer.data.training[:8])\n",
    ),
    "A command": (
        NETWORK + TOY,
        "import sys\nfrom nvae.__main__ import console\nfrom nvae.checkpoint import save\n"
        "from nvae.config import parse_config\nfrom nvae.models.families import build_model\n"
        "save(build_model(parse_config(CONFIG)), 'a.model')\n"
        "sys.argv = ['nvae', 'brightness', 'a.model', '0.7', '0', '--images', '3', '--seed', '5', '--no-window']\n"
        "try:\n    console()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "from pathlib import Path\nassert list(Path().rglob('brightness_a_temperature0.7_seed5.png'))\n",
    ),
    "A family": ("family: mlp\ninput_dimension: 8\n" + TOY, TRAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("title", CHECKS)
def test_recipe_works_as_written(root, tmp_path, title):
    recipes = dict(RECIPE.findall((root / "docs" / "extending.md").read_text(encoding="utf-8")))
    assert set(recipes) == set(CHECKS)
    shutil.copytree(root / "nvae", tmp_path / "nvae", ignore=shutil.ignore_patterns("__pycache__"))
    follow(recipes[title], tmp_path)
    config, program = CHECKS[title]
    script = f"CONFIG = {config!r}\n{program}"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
