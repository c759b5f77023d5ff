"""The texts of blocks and widths of a VDVAE."""

from __future__ import annotations

import pytest
import torch

from nvae.config import ConfigError, config_from_dict, load_config
from nvae.models.families import build_model
from nvae.models.vdvae.config import Block, blocks_of, fitting_blocks
from nvae.summary import num_parameters

PUBLISHED = {  # parameters of the encoder, of all, and latent groups
    "vdvae_cifar10": (7_497_888, 39_145_700, 43),
    "vdvae_imagenet32": (18_931_712, 119_280_868, 78),
    "vdvae_imagenet64": (26_450_816, 125_005_860, 75),
    "vdvae_ffhq256": (27_993_600, 114_874_852, 66),
    "vdvae_ffhq1024": (23_759_288, 109_366_904, 70),
}


def config(**keys):
    base = {
        "family": "vdvae",
        "input_dimension": 8,
        "width": 8,
        "enc_blocks": "8x2,8d2,4d4,1",
        "dec_blocks": "1,4m1,8m4",
    }
    return config_from_dict(base | keys, "the test")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_parameters(name):
    with torch.device("meta"):
        model = build_model(load_config(name))
    assert (num_parameters(model.encoder), num_parameters(model), len(model.groups)) == PUBLISHED[name]


def test_text_of_blocks():
    assert blocks_of("enc_blocks", "32x2, 32d2,16") == [Block(32), Block(32), Block(32, factor=2), Block(16)]
    assert blocks_of("dec_blocks", "1x1,4m1,4x2") == [Block(1), Block(4, source=1), Block(4), Block(4)]


@pytest.mark.parametrize(
    ("key", "text", "position"),
    [
        ("enc_blocks", "8x2,8m4,4", 5),  # of the decoder
        ("enc_blocks", "8x2,,4", 5),
        ("enc_blocks", "8x2,8d2,4x", 9),
        ("enc_blocks", "8x0", 1),
        ("enc_blocks", "8x2,8d3", 5),  # does not divide 8
        ("enc_blocks", "8x2,8d1", 5),
        ("enc_blocks", "8x2,4x1", 5),  # not pooled yet
        ("enc_blocks", "16x2,16d2,8", 1),  # not the size of the images
        ("enc_blocks", "8x2000", 1),
        ("enc_blocks", "8×2", 1),
        ("dec_blocks", "1,4d4,8m4", 3),  # of the encoder
        ("dec_blocks", "1,2m1,8m2", 3),  # the encoder has no 2x2
        ("dec_blocks", "1,4m1,8m3", 7),
        ("dec_blocks", "1,4m4,8m4", 3),
        ("dec_blocks", "1,4m8,8m4", 3),
        ("dec_blocks", "1,8m4", 3),  # no block at 4x4, so no stream
        ("dec_blocks", "1,4m1", 3),  # does not end at the size of the images
        ("dec_blocks", "1,4m1,8", 3),  # nothing adds the stream of 4x4
        ("dec_blocks", "4x2,1,8m4", 5),
        ("dec_blocks", "1,4m1,8m4,4x2,8", 11),  # not its last blocks
        ("dec_blocks", "1,4m1,8m٤", 7),
    ],
)
def test_blocks_that_do_not_fit_are_refused_with_their_position(key, text, position):
    with pytest.raises(ConfigError) as error:
        config(**{key: text})
    assert (error.value.key, error.value.got) == (key, text)
    assert f"; at character {position}, " in str(error.value)


def test_stream_without_learned_numbers_needs_an_earlier_block():
    with pytest.raises(ConfigError) as error:
        config(no_bias_above=1, dec_blocks="1,8m4,4m1,8m4")
    assert "; at character 3, " in str(error.value)
    assert config(no_bias_above=4, dec_blocks="1,8m4,4m1,8m4")


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"custom_width": "4:8,1"}, "custom_width"),
        ({"custom_width": "４:8"}, "custom_width"),
        ({"custom_width": "4:8,4:8"}, "custom_width"),
        ({"custom_width": "4:0"}, "custom_width"),
        ({"custom_width": "8:16"}, "custom_width"),  # other channels than width
        ({"custom_width": "4:4"}, "custom_width"),  # fewer above than below
        ({"custom_width": "4:16"}, "custom_width"),
        ({"bottleneck_multiple": 0.1}, "bottleneck_multiple"),  # no channel inside
        ({"width": 0}, "width"),
        ({"width": 10_000, "bottleneck_multiple": 16}, "bottleneck_multiple"),
    ],
)
def test_widths_that_do_not_fit_are_refused(keys, key):
    with pytest.raises(ConfigError) as error:
        config(**keys)
    assert error.value.key == key


def test_encoder_does_not_go_below_the_decoder():
    """Its last blocks would have no effect, and no gradient."""
    with pytest.raises(ConfigError) as error:
        config(dec_blocks="4,8m4")
    assert error.value.key == "enc_blocks"


def test_widths_grow_towards_the_top():
    built = build_model(config(custom_width="4:16,1:16"))
    assert [level.decoder_channels for level in built.levels] == [16, 16, 8]
    assert config(custom_width="4:16,1:16,64:3").width_at(1) == 16, "a resolution that no block has is no error"


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 25, 28, 32, 48, 64, 96, 100, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_automatic_blocks_fit_every_size(side, channels):
    keys = {"enc_blocks": "auto", "dec_blocks": "auto", "custom_width": "auto", "width": 4, "latent_size": 2}
    automatic = config(**keys, input_dimension=side, image_channels=channels, sampling_method="logistic_mixture")
    with torch.device("meta"):
        model = build_model(automatic)
        noise = [torch.zeros(2, *shape) for shape in model.noise_shapes]
        assert model(torch.zeros(2, channels, side, side), noise).px_z.mean().shape == (2, channels, side, side)
    assert model.levels[0].resolution == 1
    assert config_from_dict(automatic.model_dump(), "a checkpoint", resolved=True) == automatic


def test_automatic_blocks_are_those_of_the_documentation():
    assert fitting_blocks(32, 16) == {
        "enc_blocks": "32x1,32d2,16x2,16d2,8x2,8d2,4x2,4d4,1x1",
        "dec_blocks": "1x1,4m1,4x2,8m4,8x2,16m8,16x2,32m16",
        "custom_width": "16:32,8:64,4:64,1:64",
    }
    assert fitting_blocks(28, 8)["dec_blocks"] == "1x1,7m1,7x2,14m7,14x2,28m14"


def test_automatic_blocks_follow_an_override_of_the_size():
    assert load_config("vdvae_small", ["input_dimension=64"]).dec_blocks.endswith("64m32")
    assert load_config("vdvae_small", ["enc_blocks=32x3,32d2,16d2,8d2,4d4,1"]).enc_blocks == "32x3,32d2,16d2,8d2,4d4,1"


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"patch_size": 3}, "patch_size"),  # no factor of 8
        ({"patch_size": 2}, "enc_blocks"),  # the blocks begin at 8
        ({"no_latents_above": 2, "dec_blocks": "4,8m4"}, "no_latents_above"),  # no latents at all
        ({"no_latents_above": 4, "dec_blocks": "1,8m1,4m1,8m4"}, "dec_blocks"),  # latents below a block without
        ({"block_convolutions": 2}, "block_convolutions"),
        ({"output_width": -1}, "output_width"),
        ({"sigma": "tanh"}, "sigma"),
        ({"resampling": "bicubic"}, "resampling"),
    ],
)
def test_options_that_do_not_fit_are_refused(keys, key):
    with pytest.raises(ConfigError) as error:
        config(**keys)
    assert error.value.key == key


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_automatic_blocks_follow_the_patches(patch):
    keys = {"enc_blocks": "auto", "dec_blocks": "auto", "custom_width": "auto", "input_dimension": 32}
    fitted = config(**keys, patch_size=patch)
    assert blocks_of("enc_blocks", fitted.enc_blocks)[0].resolution == fitted.finest_resolution == 32 // patch
