import inspect
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


# A change of a name, its order, its kind or its default breaks the programs of other people.
SIGNATURES = {
    "HierarchicalVAE": "(config, levels, likelihood)",
    "HierarchicalVAE.bottom_up": "(images)",
    "HierarchicalVAE.calibrate": "(images_u8)",
    "HierarchicalVAE.decode": "(state, channels=None)",
    "HierarchicalVAE.draw_noise": "(batch_size, generator=None, *, posterior=False)",
    "HierarchicalVAE.forward": "(images, noise)",
    "HierarchicalVAE.initial_state": "(batch_size)",
    "HierarchicalVAE.no_noise": "(batch_size, *, posterior=False)",
    "HierarchicalVAE.recompute_activations": "(recompute)",
    "HierarchicalVAE.regularization_terms": "()",
    "HierarchicalVAE.pretraining_kl": "(images, noise)",
    "HierarchicalVAE.top_down": "(source, batch_size=None, *, start=None, return_states=False, mean_only=False)",
    "HierarchicalVAE.weights_computed_once": "()",
    "ModelConfig": "(**data)",
    "ModelConfig.with_default": "(key, value)",
    "Sampler": "(model, temperature=1.0, iterations=20, cache=None, batch_size=32, progress=False, statistics=None)",
    "Sampler.decode": "(noise, pixels='mean', seeds=0)",
    "Sampler.noise": "(seeds, scale=1.0)",
    "Sampler.pseudo_inputs": "(noise)",
    "Sampler.sample": "(seeds, pixels='mean', noise_scale=1.0)",
    "Sampler.with_group_temperature": "(group, temperature)",
    "Sampler.top_down": "(noise, pixels='mean', seeds=None, start=None, return_states=False)",
    "UserError": "(message, *remedies)",
    "base_point": "(sampler, noise, pixels='mean', pixel_seed=0, absolute=False)",
    "build_model": "(config)",
    "encode": "(model, images, batch_size=32, progress=False)",
    "evaluate": "(model, images_u8, batch_size=64, samples=1, seed=0, "
    "targets_u8=None, count_active=True, progress=False, estimator='importance_weighted', outer_samples=1, ranks=None)",
    "explore": "(sampler, base, draws=1, strength=1.0, seed=0)",
    "interpolate": "(sampler, a, b, times, pixels='mean', pixel_seed=0, linear=False)",
    "load_config": "(name, overrides=())",
    "load_model": "(path, device='cpu')",
    "open_sampler": "(path, temperature=1.0, iterations=20, device=None, progress=False)",
    "reconstruct": "(model, images, keep_groups=None, temperature=0.0, "
    "seed=0, pixels='mean', batch_size=32, progress=False)",
    "save": "(model, path, training=None, metadata=None, run=None)",
    "train": "(config, name=None, device=None, fresh=False, folder=None, on_event=None, progress=True, "
    "checkpoint=None, init_from=None, continue_with_changed_data=False, only_images=None)",
}


def signature(function):
    """The parameters of a function without their types, and without `self`."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name != "self"]
    return str(inspect.Signature(plain))


def public_functions():
    """The functions, constructors and methods that `nvae.__all__` names, with their names."""
    for name in nvae.__all__:
        value = getattr(nvae, name)
        yield name, value.__init__ if inspect.isclass(value) else value
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"{name}.{method}", function


def test_public_signatures_are_the_recorded_ones():
    assert {name: signature(function) for name, function in public_functions()} == SIGNATURES


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nvae.nonsense


def test_importing_nvae_does_not_import_torch(root):
    code = "import sys, nvae; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.slow
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
