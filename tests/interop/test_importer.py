"""Checkpoint files of other programs become models or are refused in one sentence; no code in a file runs."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch

from nvae.checkpoint import load_model, save
from nvae.config import config_from_dict
from nvae.interop import mgp123, nvlabs
from nvae.interop.importer import PROJECTS, import_checkpoint
from nvae.interop.key_mapping import InteropError
from nvae.interop.objects import OBJECTS, Skipped
from nvae.models.families import build_model
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy, UserError
from nvae.system.torch_files import CheckpointError, DamagedFileError, unpickled

LARGER = {
    "num_groups_per_scale": 3,
    "num_preprocess_cells": 2,
    "num_postprocess_cells": 3,
    "num_cell_per_cond_dec": 2,
    "num_nf": 1,
}
PLAIN = {"num_latent_scales": 1, "num_groups_per_scale": 1}


@pytest.fixture(scope="module")
def checkpoint(settings):
    """A function: a checkpoint like the original's with random weights, and the model that it must become."""

    def checkpoint(**changes):
        config, _ = nvlabs.config_of_settings(settings | changes, "settings")
        model, generator = build_model(config), torch.Generator().manual_seed(0)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1, generator=generator)
        state = {theirs: model.state_dict()[ours].clone() for ours, theirs in nvlabs.key_map(model).items()}
        if "prior_ftr0" in state:
            state["prior_ftr0"] = state["prior_ftr0"][0]
        args = argparse.Namespace(**(settings | changes))
        return {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}, "args": args}, model

    return checkpoint


def assert_same(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


EIGHT_CHANNELS = {"num_channels_enc": 8, "num_channels_dec": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        LARGER,
        {"num_nf": 1, "use_se": False, "res_dist": True},
        {"ada_groups": False, "num_latent_scales": 3},
        {"dataset": "mnist", "num_preprocess_blocks": 2, "num_postprocess_blocks": 2},
        {"dataset": "celeba_64", "num_mixture_dec": 1, "num_x_bits": 5},
        PLAIN,
        *(
            EIGHT_CHANNELS | {"arch_instance": name}
            for name in ("res_elu", "res_bnelu", "mbconv_sep11", "mbconv_den", "mbconv_res", "res55_mbconv")
        ),
    ],
    ids=lambda changes: "larger" if changes == LARGER else str(changes),
)
def test_import_restores_every_weight(checkpoint, file, changes):
    content, expected = checkpoint(**changes)
    imported = import_checkpoint(file(content))
    assert_same(imported.model, expected)
    assert not imported.model.training
    assert imported.origin == nvlabs.NAME
    assert imported.warnings == []


@pytest.mark.slow
def test_original_names_count_cells_and_combiners_together(checkpoint):
    """Names written by hand for groups 3, 1 (finest first); top-down 0 | 1 2 3."""
    _, model = checkpoint(**LARGER)
    names = nvlabs.key_map(model)
    expected = {
        "encoder.tower.0.0.norm1.weight": "enc_tower.0._ops.0.bn_act.weight",
        "groups.3.encoder_combiner.bias": "enc_tower.1.conv.bias",
        "groups.1.encoder_combiner.bias": "enc_tower.5.conv.bias",
        "encoder.tower.3.0.skip.convolutions.3.bias": "enc_tower.6.skip.conv_4.bias",  # downsamples
        "encoder.tower.3.1.conv2.parametrizations.weight.original1": "enc_tower.7._ops.1.conv_0.weight",
        "groups.0.decoder_combiner.parametrizations.weight.original0": "dec_tower.0.conv.log_weight_norm",
        "groups.1.cells.0.skip.convolution.parametrizations.weight.original1": "dec_tower.1.skip.1.weight",
        "groups.1.cells.0.norm1.weight": "dec_tower.1._ops.0.conv.1.bn.weight",  # after the upsampling
        "groups.1.cells.1.norm1.weight": "dec_tower.2._ops.0.conv.0.bn.weight",
        "groups.1.decoder_combiner.bias": "dec_tower.4.conv.bias",
        "groups.3.posterior_head.bias": "enc_sampler.3.bias",
        "groups.3.prior_head.bias": "dec_sampler.2.1.bias",
        "groups.2.flow.1.project.bias": "nf_cells.2.cell2.mu.conv_0.bias",
        "output.postprocess.0.se.excite.weight": "post_process.0.se.se.2.weight",
    }
    assert {ours: names[ours] for ours in expected} == expected


def test_import_ignores_copies_of_normalized_weights_and_the_constant_of_a_plain_vae(checkpoint, file):
    content, expected = checkpoint(**PLAIN)
    state = content["state_dict"]
    copies = {f"{name}_normalized": t + 1 for name, t in state.items() if name.endswith("conv_0.weight")}
    assert copies
    content["state_dict"] = state | copies | {"prior_ftr0": torch.rand(12, 16, 16)}
    assert_same(import_checkpoint(file(content)).model, expected)
    content["state_dict"]["nothing.weight_normalized"] = torch.rand(2)  # a copy of no weight
    with pytest.raises(UserError, match=r"nothing\.weight_normalized"):
        import_checkpoint(file(content))


def test_import_reads_the_format_before_pytorch_1_6(checkpoint, file):
    content, expected = checkpoint()
    assert_same(import_checkpoint(file(content, _use_new_zipfile_serialization=False)).model, expected)


def test_import_prefers_the_given_config(checkpoint, file, make_config):
    content, expected = checkpoint()
    content["args"].num_latent_per_group = 17  # wrong, and not used
    assert_same(import_checkpoint(file(content), expected.config).model, expected)
    for other in (make_config(), ModelConfig.model_construct(family="other")):
        with pytest.raises(InteropError) as error:
            import_checkpoint(file(content), other)
        assert error.value.remedies == (Remedy.MODEL_CONFIG,)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["nvlabs_bernoulli", "mgp123_logistic_mixture"])
def test_imported_models_survive_saving(imported, recording, tmp_path, name):
    save(imported(name), tmp_path / "a.model")
    assert_same(load_model(tmp_path / "a.model"), imported(name))


@pytest.mark.slow
def test_seed_checkpoint_without_its_yaml_becomes_the_recorded_model(file, imported, recording):
    content = recording("mgp123_logistic_mixture")
    config = config_from_dict(content["config"], "test")
    derived = import_checkpoint(file({"state_dict": content["state_dict"]})).model
    assert_same(derived, imported("mgp123_logistic_mixture"))
    assert_same(import_checkpoint(file(content["state_dict"])).model, derived)  # a file of the weights alone
    assert (derived.config.sampling_method, derived.config.n_mix) == (config.sampling_method, config.n_mix)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.model."])
def test_prefixes_of_wrapped_networks_are_removed(checkpoint, file, wrapper):
    content, expected = checkpoint(**PLAIN)
    content["state_dict"] = {f"{wrapper}{name}": tensor for name, tensor in content["state_dict"].items()}
    assert_same(import_checkpoint(file(content)).model, expected)


def test_prefix_of_some_names_only_is_kept(checkpoint, file):
    content, _ = checkpoint(**PLAIN)
    content["state_dict"]["module.extra"] = torch.zeros(2)
    with pytest.raises(InteropError, match=r"'module\.extra'"):
        import_checkpoint(file(content))


def test_numbers_of_numpy_and_paths_beside_the_weights_are_read_without_their_classes(checkpoint, file):
    content, expected = checkpoint(**PLAIN)
    content["best"] = [
        np.float64(1.5),
        np.float32(0.5),
        np.bool_(True),
        np.float16(2),
        np.str_("a"),
        np.datetime64(1, "s"),
    ]
    content["state"] = ("MT19937", np.arange(5, dtype=np.uint32), np.dtype("f4"))
    content["args"].num_x_bits = np.int64(content["args"].num_x_bits)
    content["args"].folder, content["args"].windows = Path("runs") / "a", PureWindowsPath("C:/runs")
    path = file(content)
    assert_same(import_checkpoint(path).model, expected)
    read = unpickled(path, "", others=OBJECTS)
    assert read["best"][:4] == [1.5, 0.5, True, 2.0]
    assert [type(value) for value in read["best"][:4]] == [float, float, bool, float]
    assert {type(value) for value in [*read["best"][4:], *read["state"][1:], read["args"].folder]} == {Skipped}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("numpy._core.multiarray.scalar", (1, 2)),
        ("numpy.core.multiarray.scalar", ("f8", b"abc")),
        ("numpy._core.multiarray._reconstruct", ({}, -1, None)),
        ("numpy.dtype", ("O", True, True)),
        ("pathlib.PosixPath", ("/", {})),
    ],
)
def test_stand_ins_take_any_arguments(checkpoint, file, name, arguments):
    """A hostile file chooses what the names are called with."""
    content, expected = checkpoint(**PLAIN)
    (stand_in,) = {each for each, full in OBJECTS if full == name}
    assert isinstance(stand_in(*arguments), Skipped)
    content["extra"] = Called(arguments)
    module, _, function = name.rpartition(".")
    path = file(content)
    with zipfile.ZipFile(path) as archive:
        records = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, record in records.items():
            archive.writestr(member, record.replace(b"c__builtin__\nprint\n", f"c{module}\n{function}\n".encode()))
    assert_same(import_checkpoint(path).model, expected)


class Called:
    """Unpickling it would call `print`, of which a test makes another name."""

    def __init__(self, arguments):
        self.arguments = arguments

    def __reduce__(self):
        return print, self.arguments


# ---------------------------------------------------------------------------------------------------- bad files


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_objects_of_other_classes_are_never_created(checkpoint, file, tmp_path):
    content, _ = checkpoint()
    content["args"].extra = Trap(tmp_path / "sprung")
    with pytest.raises(UserError, match=r"\.open"):
        import_checkpoint(file(content))
    old = tmp_path / "old.pt"
    old.write_bytes(pickle.dumps({"state_dict": Trap(tmp_path / "sprung")}, protocol=2))
    with pytest.raises(UserError):
        import_checkpoint(old)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "advice"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"), (b"<!doctype html>", "web page")],
)
def test_text_in_place_of_a_file_is_named(tmp_path, content, advice):
    path = tmp_path / "a.model"
    path.write_bytes(content)
    for read in (import_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=advice) as error:
            read(path)
        assert not isinstance(error.value, DamagedFileError)  # which recovery would replace by the file saved before


@pytest.mark.parametrize("name", ["npscalar", "ddp"])
def test_files_of_other_programs_are_read_as_weights(root, name):
    """Both hold a few tensors of a network of the original NVAE."""
    path = root.parent / "shared" / "cases" / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"the file is missing: {path}")
    with pytest.raises(InteropError, match="lacks 'dec_sampler"):
        import_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused(checkpoint, file, zipped):
    path = file(checkpoint()[0], _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for kept in [*range(0, 200, 17), *range(1000, len(whole), len(whole) // 13)]:
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"checkpoint\.pt"):
            import_checkpoint(path)


def test_compressed_files_are_refused(checkpoint, file):
    path = file(checkpoint()[0])
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a small file could unpack to gigabytes
        for name, record in records.items():
            archive.writestr(name, record)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        import_checkpoint(path)


def test_paths_that_are_no_files_are_refused(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(UserError, match=path.name):
            import_checkpoint(path)


ENCODER = {"enc_sampler.0.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("content", "needs_config"),
    [
        ([1, 2], False),
        ({}, False),
        ({"state_dict": {"layer.weight": torch.zeros(2)}}, False),
        ({"state_dict": {"decoder_constant": torch.zeros(1, 2, 4, 4)}}, False),
        ({"state_dict": ENCODER}, True),
        ({"state_dict": ENCODER, "args": {"dataset": {}}}, True),
        ({"state_dict": {"mixer.encoder_sampler.0.weight_v": torch.zeros(4, 2, 3, 3)}}, True),
    ],
    ids=str,
)
def test_files_with_other_content_are_refused(file, content, needs_config):
    with pytest.raises(UserError, match=r"checkpoint\.pt") as error:
        import_checkpoint(file(content))
    assert (Remedy.MODEL_CONFIG in error.value.remedies) is needs_config


@pytest.mark.parametrize(
    "tensor",
    [
        3,
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(1).expand(10**12),  # computing with these would take terabytes
    ],
    ids=lambda tensor: str(tensor)[:40],
)
def test_weights_that_are_no_dense_real_tensors_are_refused(checkpoint, file, tensor):
    content, _ = checkpoint()
    content["state_dict"]["enc_sampler.0.weight"] = tensor
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        import_checkpoint(file(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "refused"),
    [
        ("num_nf", True),
        ("dataset", True),
        ("epochs", False),
        ("model_arch", False),
        ("args", True),
        ("state_dict", True),
    ],
)
def test_deeply_nested_lists_are_one_sentence_or_unused(checkpoint, file, place, refused):
    content, _ = checkpoint()
    if place in content or place == "model_arch":
        content[place] = "PLACEHOLDER"
    else:
        setattr(content["args"], place, "PLACEHOLDER")
    path = file(content)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:  # Python's own pickler cannot write such lists
        for name, record in records.items():
            archive.writestr(name, record.replace(b"X\x0b\0\0\0PLACEHOLDER", b"]" * 100_000 + b"a" * 99_999))
    assert path.stat().st_size > 200_000
    if refused:
        with pytest.raises(UserError, match=r"checkpoint\.pt"):
            import_checkpoint(path)
    else:
        import_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_latent_scales": 10**6}, "number_of_scales"),
        ({"num_channels_dec": 9999}, "shape"),  # a network of more memory than there is
        ({"num_groups_per_scale": 100}, "lacks|initial_splits_per_scale"),
        ({"num_nf": 10**9}, "num_flows"),
    ],
    ids=str,
)
def test_settings_of_huge_networks_are_refused_before_building_them(checkpoint, file, changes, named):
    content, _ = checkpoint()
    vars(content["args"]).update(changes)
    with pytest.raises(UserError, match=named):
        import_checkpoint(file(content))


def test_projects_do_not_claim_each_others_weights(recording):
    for name, project_name in (("nvlabs_bernoulli", nvlabs.NAME), ("mgp123_gaussian_flows", mgp123.NAME)):
        state = recording(name)["state_dict"]
        assert [project.NAME for project in PROJECTS if project.matches(state)] == [project_name]
