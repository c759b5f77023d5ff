"""Checkpoints of the original VDVAE, forged with random weights."""

from __future__ import annotations

import json

import pytest
import torch

from nvae.config import load_config
from nvae.inference.sampling import Sampler
from nvae.interop.importer import import_checkpoint
from nvae.interop.key_mapping import InteropError
from nvae.interop.vdvae import PUBLISHED, config_of, config_of_settings, key_map
from nvae.models.families import build_model
from nvae.system.errors import Remedy, UserError


@pytest.fixture
def a(recording):
    return recording("vdvae_a")


@pytest.fixture
def with_log(file, tmp_path):
    """A function: the path of a file of weights with a log of settings beside it."""

    def with_log(state, settings, name="run-model-ema.th"):
        lines = [{"type": "hparam", "key": key, "value": value, "time": 1.5} for key, value in settings.items()]
        lines += [{"message": "training"}, {"type": "train_loss", "elbo": 4.2, "step": 300}]
        (tmp_path / "run-log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return file(state, name)

    return with_log


def forged(name):
    """Return random weights with the original's names and the shapes of a published config."""
    generator = torch.Generator().manual_seed(0)
    return {name: 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes_of(name).items()}


def shapes_of(name):
    """Return tensors without memory, with the original's names and the shapes of a published config."""
    with torch.device("meta"):
        blank = build_model(load_config(name))
    tensors = blank.state_dict()
    return {theirs: tensors[ours] for ours, theirs in key_map(blank).items()}


@pytest.mark.slow
@torch.no_grad()
def test_forged_checkpoint_of_cifar10_imports_and_samples(file):
    state = forged("vdvae_cifar10")
    imported = import_checkpoint(file(state, "cifar10-seed0-iter-900000-model-ema.th"))
    assert imported.model.config == load_config("vdvae_cifar10")
    assert len(imported.warnings) == 1
    weights = imported.model.state_dict()
    assert all(torch.equal(weights[ours], state[theirs]) for ours, theirs in key_map(imported.model).items())
    assert Sampler(imported.model, 0.7).sample(1).std() > 0


@pytest.mark.parametrize("name", PUBLISHED.values())
def test_published_network_is_recognized_by_its_shapes(name):
    """Every published network has other numbers of channels, mixtures and blocks."""
    assert config_of({}, shapes_of(name), "x-model.th")[0] == load_config(name)


@pytest.mark.parametrize(("prefix", "name"), [("module.", "run-model.th"), ("", "run-model-ema.th")])
def test_settings_come_from_the_log(a, with_log, prefix, name):
    state = {f"{prefix}{key}": tensor for key, tensor in a["state_dict"].items()}
    imported = import_checkpoint(with_log(state, a["hps"], name))
    config, hps = imported.model.config, a["hps"]
    assert (config.enc_blocks, config.dec_blocks, config.latent_size) == (hps["enc_blocks"], hps["dec_blocks"], 4)
    assert config.training_parameters == load_config("vdvae_cifar10").training_parameters
    assert (config.dataset.name, config.pixel_mean) == ("cifar10", 120.63838)
    weights = imported.model.state_dict()
    for ours, theirs in key_map(imported.model).items():
        assert torch.equal(weights[ours], a["state_dict"][theirs])


def test_whole_numbers_of_a_log_may_be_written_as_fractions(a):
    fractions = {key: float(value) if type(value) is int else value for key, value in a["hps"].items()}
    assert config_of_settings(fractions, "x") == config_of_settings(a["hps"], "x")


def test_config_of_the_user_replaces_the_log(a, file):
    config = config_of_settings(a["hps"], "x")
    path = file(a["state_dict"], "other.pt")
    with pytest.raises(InteropError, match="16 channels with 10 blocks") as error:
        import_checkpoint(path)
    assert error.value.remedies == (Remedy.MODEL_CONFIG,)
    assert import_checkpoint(path, config).model.config == config


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dataset": "celeba"}, "celeba"),
        ({"enc_blocks": "32x2,31d2"}, "character 6"),
        ({"width": "many"}, "width"),
        ({"zdim": 5}, "got shape"),
        ({"dec_blocks": "1x1,4m1,32m4"}, "the config has no"),
        ({"dataset": {"a": []}}, "names the data set"),
        ({"dataset": None}, "names the data set"),
    ],
)
def test_log_of_another_network_is_refused(a, with_log, changes, part):
    with pytest.raises(InteropError, match=part) as error:
        import_checkpoint(with_log(a["state_dict"], a["hps"] | changes))
    assert Remedy.MODEL_CONFIG in error.value.remedies


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "hparam", "key": ',
        b'{"type": "hparam"}',
        b'"hparam"',
        b"\xff\xfe hparam",
        b'["hparam"]',
        b'"hparam"' * 9,
    ],
)
def test_damaged_log_is_refused(a, with_log, tmp_path, line):
    path = with_log(a["state_dict"], a["hps"])
    (tmp_path / "run-log.jsonl").write_bytes(line)
    with pytest.raises(InteropError, match="log.jsonl"):
        import_checkpoint(path)


@pytest.mark.parametrize("content", ["", "<html>404</html>", '{"type": "train_loss", "about": "hparam"}'])
def test_log_without_settings_leaves_the_shapes(a, with_log, tmp_path, content):
    path = with_log(a["state_dict"], a["hps"])
    (tmp_path / "run-log.jsonl").write_text(content)
    with pytest.raises(InteropError, match="none of the published ones"):
        import_checkpoint(path)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_hostile_and_cut_off_files_are_refused(a, with_log, file, tmp_path):
    with pytest.raises(UserError, match=r"\.open"):
        import_checkpoint(with_log(a["state_dict"] | {"decoder.more": Trap(tmp_path / "sprung")}, a["hps"]))
    assert not (tmp_path / "sprung").exists()
    path = with_log(a["state_dict"], a["hps"])
    whole = path.read_bytes()
    for kept in (10, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="run-model-ema"):
            import_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda state: state.pop("decoder.gain"), "unknown network"),
        (lambda state: state.pop("decoder.out_net.out_conv.weight"), "lacks 'decoder.out_net.out_conv.weight'"),
        (lambda state: state.update(extra=torch.zeros(2)), "'extra'"),
        (lambda state: state["decoder.gain"].fill_(float("nan")), "not finite"),
        (lambda state: state.update({"decoder.gain": torch.zeros(1, 3, 1, 1)}), "got shape"),
        (lambda state: state.update({"decoder.gain": 3}), "dictionary of named tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(a, with_log, change, part):
    state = {name: tensor.clone() for name, tensor in a["state_dict"].items()}
    change(state)
    with pytest.raises(UserError, match=part):
        import_checkpoint(with_log(state, a["hps"]))
