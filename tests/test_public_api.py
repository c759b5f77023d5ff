import subprocess
import sys
import textwrap

import pytest
import torch

import nvae


@pytest.mark.parametrize("name", nvae.__all__)
def test_public_name_is_importable(name):
    assert getattr(nvae, name).__name__ == name
    assert name in dir(nvae)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nvae.nonsense


def test_importing_nvae_does_not_import_torch(root):
    code = "import sys, nvae; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_lines_of_the_docstring_run(folder, monkeypatch, make_config):
    """From a config to samples, with a tiny config in place of quickstart."""
    block = nvae.__doc__.split("\n\n", 1)[1].rsplit("\n\n", 1)[0]
    lines = [line for line in textwrap.dedent(block).splitlines() if line and not line.startswith("#")]
    assert len(lines) == 10
    data = {"name": "toy_faces", "training_images": 8, "validation_images": 4}
    training = {"epochs": 1, "batch_size": 4, "evaluation_samples": 0}
    tiny = make_config(dataset=data, training_parameters=training, initial_splits_per_scale=1)
    monkeypatch.setattr(nvae, "load_config", lambda name: {"quickstart": tiny}[name], raising=False)
    names = {}
    exec("\n".join(lines), names)  # our own text
    assert names["images"].shape == (16, 3, 8, 8)
    assert 0 <= names["images"].min() <= names["images"].max() <= 1
    assert names["between"].shape == (8, 3, 8, 8)
    assert [images.shape for images in names["resampled"]] == [torch.Size([1, 3, 8, 8])] * 2
    assert names["again"].shape == names["images"].shape
    assert names["evaluation"].samples == 10
