"""Compare Ladder VAEs and DVP-VAEs with recordings of the published program (tests/data/README.md)."""

from __future__ import annotations

from typing import Any

import torch

from nvae.config import config_from_dict
from nvae.models.ladder.config import LadderConfig
from nvae.models.ladder.network import Block, LadderVAE
from nvae.models.priors.unet import UNet

TOLERANCE = 1e-5  # of each tensor's largest value
CIFAR10_PIXELS = {"pixel_mean": 120.63838, "pixel_std": 64.16736}


def config_of(recorded: dict[str, Any]) -> LadderConfig:
    """Return our config for the recorded settings."""
    likelihood = "coupled_logistic_mixture" if recorded["likelihood"] == "logistic_mixture" else recorded["likelihood"]
    return config_from_dict(
        {
            "family": recorded["family"],
            "input_dimension": recorded["image_size"][1],
            "image_channels": recorded["image_size"][0],
            "sampling_method": likelihood,
            "n_mix": recorded["num_mix"],
            "latents_per_scale": recorded["latent_scales"],
            "latent_size": recorded["latent_width"][0],
            "channels": recorded["num_ch"],
            "scale_multiplier": float(recorded["scale_ch_mult"]),
            "hidden_multiplier": float(recorded["block_ch_mult"]),
            "encoder": recorded["encoder"],
            "num_init_blocks": recorded["num_init_blocks"],
            "encoder_blocks_per_scale": recorded["encoder_blocks_per_scale"],
            "decoder_blocks_per_latent": recorded["decoder_blocks_per_latent"],
            "num_postprocess_blocks": recorded["num_postprocess_blocks"],
            "activation": recorded["activation"],
            "batch_norm": recorded["batch_norm"],
            "weight_norm": recorded["weight_norm"],
            "first_scale_at_image_size": recorded["start_scale_at_x"],
            "min_log_variance": float(recorded["min_logvar"]),
        }
        | (CIFAR10_PIXELS if recorded["dataset"] == "cifar10" else {})
        | (context_keys(recorded) if recorded["family"] == "dvp" else {}),
        "the recording",
    )


def context_keys(recorded: dict[str, Any]) -> dict[str, Any]:
    diffusion, unet = recorded["diffusion"], recorded["unet"]
    return {
        "context": recorded["ctx_type"],
        "context_size": recorded["ctx_size"],
        "diffusion_steps": diffusion["T"],
        "diffusion_min_gamma": diffusion["gamma_min"],
        "diffusion_max_gamma": diffusion["gamma_max"],
        "diffusion_schedule": diffusion["schedule"],
        "diffusion_parametrization": diffusion["parametrization"],
        "unet_channels": unet["model_channels"],
        "unet_blocks": unet["num_res_blocks"],
        "unet_attention_heads": unet["num_heads"],
        "unet_dropout": unet["dropout"],
    }


def block_names(ours: str, theirs: str, block: Block, preactivation: bool) -> dict[str, str]:
    """Map our names of the modules of a block to the original's names."""
    names = {f"{ours}.skip": f"{theirs}.skip"}
    convolutions = norms = 0
    has_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in block.body)
    for index, module in enumerate(block.body):
        place = None
        if isinstance(module, torch.nn.Conv2d):
            if preactivation:
                place = f"net.{convolutions}.net.{2 if has_norm else 1}"
            else:
                place = f"net.{convolutions + has_norm}" + (".net.0" if convolutions < 3 else "")
            convolutions += 1
        elif isinstance(module, torch.nn.BatchNorm2d):
            if preactivation:
                place = f"net.{norms}.net.0"
            else:
                place = "net.0" if norms == 0 else f"net.{norms}.net.1" if norms < 4 else "net.5"
            norms += 1
        if place is not None:
            names[f"{ours}.body.{index}"] = f"{theirs}.{place}"
    return names


def module_names(model: LadderVAE) -> dict[str, str]:
    """Map our names of the modules with weights to the original's names."""
    names = {"encoder.stem.0": "encoder.pre_process.0", "output.projection": "decoder.z_to_features"}
    for i, block in enumerate(model.encoder.stem[1:], 1):
        names |= block_names(f"encoder.stem.{i}", f"encoder.pre_process.{i}", block, True)
    for k, stage in enumerate(model.encoder.stages):
        for b, block in enumerate(stage):
            names |= block_names(f"encoder.stages.{k}.{b}", f"encoder.encoder_blocks.{k}.{b}", block, True)
    for g, group in enumerate(model.groups):
        theirs = f"decoder.decoder_blocks.{g}"
        if group.level.name:
            names |= unet_names(f"groups.{g}.top_prior.unet", f"{theirs}.ctx_prior.model", group.top_prior.unet)
            continue
        names[f"groups.{g}.z_projection"] = f"{theirs}.z_up"
        names |= block_names(f"groups.{g}.prior_block", f"{theirs}.s_to_p", group.prior_block, False)
        names |= block_names(f"groups.{g}.posterior_block", f"{theirs}.s_to_q", group.posterior_block, False)
        for b, block in enumerate(group.blocks):
            names |= block_names(f"groups.{g}.blocks.{b}", f"{theirs}.resnet.{b}", block, False)
    for i, block in enumerate(model.output.blocks):
        names |= block_names(f"output.blocks.{i}", f"decoder.post_process.{i}", block, False)
    return names | {"output.head": f"decoder.post_process.{len(model.output.blocks)}"}


def unet_names(ours: str, theirs: str, unet: UNet) -> dict[str, str]:
    """Map our names of the modules of a U-Net to the original's names."""
    names = {"embedding.0": "time_embed.0", "embedding.2": "time_embed.2", "stem": "input_blocks.0.0"}
    names |= {"norm": "out.0", "head": "out.2", "attention.norm": "middle_block.1.norm"}
    names |= {"attention.qkv": "middle_block.1.qkv", "attention.output": "middle_block.1.proj_out"}
    blocks = {"middle1": "middle_block.0", "middle2": "middle_block.2"}
    blocks |= {f"down.{i}": f"input_blocks.{i + 1}.0" for i in range(len(unet.down))}
    blocks |= {f"up.{i}": f"output_blocks.{i}.0" for i in range(len(unet.up))}
    parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "modulation": "emb_layers.1", "norm2": "out_layers.0"}
    parts |= {"conv2": "out_layers.3", "skip": "skip_connection"}
    names |= {f"{block}.{a}": f"{other}.{b}" for block, other in blocks.items() for a, b in parts.items()}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in names.items()}


TENSORS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def tensor_names(model: LadderVAE) -> dict[str, str]:
    """Map our names of the tensors to the original's names."""
    names = {}
    for module, theirs in module_names(model).items():
        for name in names_inside(model, module):
            names[f"{module}.{name}"] = f"{theirs}.{TENSORS.get(name, name)}"
    if model.groups[0].level.name:
        names["groups.0.log_variance"] = "decoder.decoder_blocks.0.q_logvar"
        if "groups.0.context.scale" in model.state_dict():
            names["groups.0.context.scale"] = "decoder.decoder_blocks.0.dct_scale"
    return names


def names_inside(model: LadderVAE, module: str) -> list[str]:
    return list(model.get_submodule(module).state_dict())


def load_recorded(model: LadderVAE, state: dict[str, torch.Tensor]) -> None:
    names = tensor_names(model)
    assert names.keys() == model.state_dict().keys()
    constants = (".beta", ".gamma_min", ".gamma_max")  # and a second name of the diffusion prior
    theirs = {n for n in state if not n.endswith(constants) and ".dct." not in n and "z_L_prior" not in n}
    assert set(names.values()) == theirs
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # A 1x1 convolution of one dimension is one of two dimensions here.
    model.load_state_dict({ours: state[theirs].reshape(shapes[ours]) for ours, theirs in names.items()})


def images_of(recorded: dict) -> torch.Tensor:
    return (recorded["x"] + 1) / 2


def targets_of(recorded: dict) -> torch.Tensor:
    """Return the binary images of the likelihood; the encoder sees gray images."""
    target = recorded["x_target"]
    return (target + 1) / 2 if target.min() < 0 else target


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-3), (ours - theirs).abs().max()


def assert_groups(output, expected: dict, keys: list[str]) -> None:
    for index, group in output.groups.items():
        values = {"z": group.z, "p_mu": group.prior.mu, "p_logvar": 2 * group.prior.sigma.log()}
        if group.posterior is not None:
            values |= {"q_mu": group.posterior.mu, "q_logvar": 2 * group.posterior.sigma.log()}
        for key in keys:
            assert_close(values[key], expected[key][index])
