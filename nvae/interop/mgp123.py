"""The seed project's weights: its names, and where they go in our model."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from nvae.config import Config, groups_per_scale

_RESIDUAL = {0: "norm1", 2: "conv1", 3: "norm2", 5: "conv2", 6: "gate"}
_INVERTED = {1: "norm1", 2: "expand", 3: "norm2", 5: "spread", 6: "norm3", 8: "project", 9: "norm4", 10: "gate"}
_GATE = {0: "squeeze", 2: "excite"}
_FLOW = {0: "expand", 2: "spread", 5: "project"}
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_MASKED = {"weight": "parametrizations.weight.original"}


def _inside_cell(rest: str, parts: dict[int, str]) -> str:
    """A name inside a cell: `model.6.model.0.weight`, `skip.model.skip down.conv_1.bias`, ..."""
    rest = re.sub(r"^skip\.model\.skip down\.conv_(\d+)\.", lambda m: f"skip.convolutions.{int(m[1]) - 1}.", rest)
    rest = re.sub(r"^skip\.model\.skip up\.model\.", "skip.convolution.", rest)
    rest = re.sub(r"^model\.(\d+)\.model\.(\d+)\.", lambda m: f"{parts[int(m[1])]}.{_GATE[int(m[2])]}.", rest)
    return re.sub(r"^model\.(\d+)\.", lambda m: f"{parts[int(m[1])]}.", rest)


def translate(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The seed's state dictionary with our names. Raises KeyError on a name that the seed does not have."""
    groups = groups_per_scale(config)  # finest first, like the seed's encoder blocks
    doubling = {sum(groups[i:]) for i in range(1, len(groups))}  # groups that begin a finer scale

    def tower(m: re.Match) -> str:
        block, split = int(m[1]) - 1, int(m[2]) - 1
        halves = block > 0 and split == 0
        cell = 0 if m[3] == "down" else int(m[4]) - 1 + halves
        return f"encoder.tower.{sum(groups[:block]) + split}.{cell}.{_inside_cell(m[5], _RESIDUAL)}"

    def cells(m: re.Match) -> str:
        group = int(m[1]) + 1
        cell = 0 if m[2] == "cell_decoder_upsample" else int(m[3]) - 1 + (group in doubling)
        return f"groups.{group}.cells.{cell}.{_inside_cell(m[4], _INVERTED)}"

    rules: list[tuple[str, Callable[[re.Match], str]]] = [
        (r"decoder_constant", lambda m: "constant"),
        (r"initial_transform\.(\w+)", lambda m: f"encoder.stem.{_WEIGHT_NORM.get(m[1], m[1])}"),
        (
            r"preprocess\.model\.(\d+)\.model\.(.+)",
            lambda m: f"encoder.preprocess.{int(m[1]) - 1}.{_inside_cell(m[2], _RESIDUAL)}",
        ),
        (r"encoder_tower\.model\.enc_block_(\d+)\.model\.split_(\d+)\.model\.(down|cell_encoder(\d+))\.(.+)", tower),
        (r"mixer\.encoder_mixer\.0\.model\.1\.(\w+)", lambda m: f"encoder.top.1.{_WEIGHT_NORM.get(m[1], m[1])}"),
        (
            r"mixer\.encoder_mixer\.(\d+)\.model\.(\w+)",
            lambda m: f"groups.{m[1]}.encoder_combiner.{_WEIGHT_NORM.get(m[2], m[2])}",
        ),
        (
            r"mixer\.encoder_sampler\.(\d+)\.(\w+)",
            lambda m: f"groups.{m[1]}.posterior_head.{_WEIGHT_NORM.get(m[2], m[2])}",
        ),
        (
            r"mixer\.decoder_sampler\.(\d+)\.1\.(\w+)",
            lambda m: f"groups.{m[1]}.prior_head.{_WEIGHT_NORM.get(m[2], m[2])}",
        ),
        (
            r"mixer\.decoder_mixer\.(\d+)\.model\.(\w+)",
            lambda m: f"groups.{m[1]}.decoder_combiner.{_WEIGHT_NORM.get(m[2], m[2])}",
        ),
        (
            r"mixer\.normal_flow_block\.(\d+)\.model\.(\d+)\.model\.(\d+)\.(\w+)",
            lambda m: f"groups.{m[1]}.flow.{m[2]}.{_FLOW[int(m[3])]}.{_MASKED.get(m[4], m[4])}",
        ),
        (r"decoder_tower\.blocks\.(\d+)\.model\.(cell_decoder_upsample|cell_decoder(\d+))\.(.+)", cells),
        (
            r"postprocess\.model\.(\d+)\.model\.(.+)",
            lambda m: f"output.postprocess.{int(m[1]) - 1}.{_inside_cell(m[2], _INVERTED)}",
        ),
        (r"to_distribution_conv\.1\.(\w+)", lambda m: f"output.head.{_WEIGHT_NORM.get(m[1], m[1])}"),
    ]

    def ours(name: str) -> str:
        for pattern, rule in rules:
            if match := re.fullmatch(pattern, name):
                return rule(match)
        raise KeyError(name)

    return {ours(name): tensor for name, tensor in state.items()}
