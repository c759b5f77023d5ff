"""The YAML schema of a model: read, default, validate, override, explain.

One YAML file says everything about a model: architecture, data and training schedule. The flat keys are the format
of the seed project; every other key extends it and defaults to the seed's behaviour, or, with `style: nvlabs`, to that
of the original NVAE (`STYLES`). Whatever is wrong with a file is said in one sentence, with file, line and key, before
anything is built (`ConfigError`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from nvae.errors import UserError

CONFIG_FOLDER = "model_configs"

PositiveInt = Annotated[int, Field(gt=0)]
# Far beyond any network, and near enough that what is meant to be a typo or a trap is not built.
Few = Annotated[int, Field(gt=0, le=100)]
FewOrNone = Annotated[int, Field(ge=0, le=100)]
Many = Annotated[int, Field(gt=0, le=10_000)]
NaturalInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NaturalFloat = Annotated[float, Field(ge=0)]

DatasetName = Literal["folder", "mnist", "fashion_mnist", "cifar10", "toy_faces"]
SamplingMethod = Literal[
    "bernoulli", "gaussian", "gaussian_mixture", "logistic", "logistic_mixture", "coupled_logistic_mixture"
]
ArchInstance = Literal[
    "res_mbconv",
    "res_elu",
    "res_bnelu",
    "res_bnswish",
    "mbconv_sep",
    "mbconv_sep11",
    "res53_mbconv",
    "res35_mbconv",
    "res55_mbconv",
    "mbconv_res",
    "mbconv_den",
]

# What a style changes in the defaults below, which are those of `mgp123`. Every one of these keys can be set by itself.
STYLES: dict[str, dict[str, Any]] = {
    "mgp123": {},
    "nvlabs": {
        "pixel_range": "centred",
        "weight_normalisation": "exponential",
        "normalise_cells": True,
        "squeeze_excitation": "sixteenth",
        "flow_columns": "left",
        "halving_skip": "shifted",
        "doubling_skip_bias": False,
        "postprocess_doubling": "first",
        "initial_constant": "uniform",
        "temperature_on_floor": True,
        "sampling_method": "coupled_logistic_mixture",
        "n_mix": 10,
        "training_parameters": {
            "learning_rate_min": 1e-4,
            "learning_rate_warmup_epochs": 5.0,
            "learning_rate_decay": "after_its_warmup",
            "warmup_portion": 0.3,
            "warmup_delay_portion": 1e-4,
            "regularization_constant": 1e-2,
            "spectral_exponent": 1,
            "spectral_scope": "all",
        },
    },
}


class ConfigError(UserError):
    """A config that cannot be read or does not describe a model."""


class Section(BaseModel):
    """Strict: no unknown keys, no silent conversions, no NaN or infinity, no changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Towers(Section):
    """A number for the bottom-up (encoder) and one for the top-down (decoder) network."""

    encoder: Many
    decoder: Many


TOWER_KEYS = ("channel_towers", "num_cells_per_block_prepost")


def _same_towers(value: Any) -> Any:
    """`channel_towers: 32` is short for the same number in both towers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"encoder": value, "decoder": value}
    return value


def _cells_of_both(value: Any) -> Any:
    """As in `channel_towers`, but a tower that is not mentioned has its default."""
    value = _same_towers(value)
    return CELLS_PER_BLOCK.model_dump() | value if isinstance(value, dict) else value


BothTowers = Annotated[Towers, BeforeValidator(_same_towers)]
CELLS_PER_BLOCK = Towers(encoder=2, decoder=2)
WARMUPS = ("warmup_epochs", "warmup_steps", "warmup_portion")  # ways to say how long the KL's weight rises


class DatasetConfig(Section):
    """Where the images come from. `path` is the folder of images, or where a downloaded set is kept."""

    name: DatasetName = "folder"
    path: str = "dataset"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of a folder's images
    training_images: Annotated[int, Field(gt=0, le=1_000_000_000)] = 6000  # toy_faces draws as many as one wants
    validation_images: PositiveInt = 300  # toy_faces
    # Width times height of one file; larger files are left out. Pillow itself refuses more than 178,956,970.
    max_image_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 64_000_000
    horizontal_flip: bool = False  # turn training images round, half of them
    binarize: bool = False  # subpixels are drawn, black or white, with their brightness as the probability


class TrainingParameters(Section):
    """The training schedule. All keys but `seed` and `spectral_scope` may change between two runs of the same model."""

    learning_rate: PositiveFloat = 1e-2
    learning_rate_min: NaturalFloat = 1e-5
    learning_rate_warmup_epochs: NaturalFloat = 0.0
    learning_rate_decay: Literal["after_kl_warmup", "after_its_warmup"] = "after_kl_warmup"
    weight_decay: NaturalFloat = 3e-4
    regularization_constant: NaturalFloat = 5e-2
    regularization_constant_initial: PositiveFloat | None = None
    spectral_exponent: Literal[1, 2] = 2
    spectral_scope: Literal["cells_and_heads", "all"] = "cells_and_heads"
    kl_constant: NaturalFloat = 1.0
    kl_balancing: bool = True
    warmup_epochs: NaturalFloat = 30.0
    warmup_steps: NaturalInt | None = None
    warmup_portion: Annotated[float, Field(ge=0, le=1)] | None = None
    warmup_delay_portion: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 20
    write_reconstruction: bool = True
    images_per_checkpoint: PositiveInt | None = None
    epochs_per_checkpoint: PositiveInt | None = 2
    evaluation_samples: NaturalInt = 10
    gradient_clipping: PositiveFloat | None = None
    half_precision: bool = False
    use_tensor_checkpoints: bool = False
    seed: NaturalInt = 0


class Config(Section):
    """A whole model. Field names are the YAML keys; see the README's reference for what each one means."""

    family: Literal["nvae"] = "nvae"
    style: Literal["mgp123", "nvlabs"] = "mgp123"
    channel_towers: BothTowers
    number_of_scales: Annotated[int, Field(gt=0, le=12)]
    initial_splits_per_scale: Annotated[int, Field(gt=0, le=1000)]
    exponential_scaling: PositiveInt = 1
    min_splits: Annotated[int, Field(gt=0, le=1000)] = 1
    latent_size: Many
    input_dimension: Many = 64
    padding: Annotated[int, Field(ge=0, le=1000)] = 0
    image_channels: Literal[1, 3] = 3
    pixel_bits: Annotated[int, Field(ge=1, le=8)] = 8
    pixel_range: Literal["unit", "centred"] = "unit"
    num_flows: FewOrNone = 0
    fixed_flows: bool = False
    flow_columns: Literal["left", "right"] = "right"
    num_blocks_prepost: Annotated[int, Field(ge=0, le=12)] = 1
    num_cells_per_block_prepost: Annotated[Towers, BeforeValidator(_cells_of_both)] = CELLS_PER_BLOCK
    cells_per_split_enc: Few = 2
    cells_per_input_dec: Few = 2
    channel_multiplier: Annotated[int, Field(gt=0, le=16)] = 2
    arch_instance: ArchInstance = "res_mbconv"
    plain_vae: bool = False
    residual_posterior: bool = True
    squeeze_excitation: Literal["none", "half", "sixteenth"] = "half"
    weight_normalisation: Literal["linear", "exponential"] = "linear"
    normalise_cells: bool = False
    spectral_normalisation: bool = False
    halving_skip: Literal["aligned", "shifted"] = "aligned"
    doubling_skip_bias: bool = True
    postprocess_doubling: Literal["first", "last"] = "last"
    initial_constant: Literal["normal", "uniform"] = "normal"
    temperature_on_floor: bool = False
    sampling_method: SamplingMethod = "gaussian"
    n_mix: Annotated[int, Field(gt=0, le=1000)] = 3
    likelihood_tails: Literal["original", "exact"] = "original"
    dataset: DatasetConfig = DatasetConfig()
    training_parameters: TrainingParameters = TrainingParameters()

    @model_validator(mode="before")
    @classmethod
    def _style(cls, data: Any) -> Any:
        """Put the style's values where the file says nothing."""
        if not isinstance(data, dict) or not isinstance(data.get("style", "mgp123"), str):
            return data
        style = STYLES.get(data.get("style", "mgp123"), {})
        if style:  # the original has no other model of a single group
            single = (data.get("number_of_scales"), data.get("initial_splits_per_scale")) == (1, 1)
            style = style | {"plain_vae": single}
        filled, schedule = _filled(data, style), data.get("training_parameters")
        if style and isinstance(schedule, dict) and any(schedule.get(key) is not None for key in WARMUPS):
            filled["training_parameters"] |= {"warmup_portion": schedule.get("warmup_portion")}
        return filled

    @model_validator(mode="after")
    def _possible(self) -> Config:
        halvings = self.num_blocks_prepost + self.number_of_scales - 1
        side = self.input_dimension + 2 * self.padding
        if side % 2**halvings:
            padded = f" plus {2 * self.padding} of padding" if self.padding else ""
            raise ValueError(
                f"input_dimension|is {self.input_dimension}{padded}, which num_blocks_prepost "
                f"{self.num_blocks_prepost} and number_of_scales {self.number_of_scales} halve {halvings} times|a "
                f"multiple of {2**halvings} in all"
            )
        if self.plain_vae and (self.number_of_scales, self.initial_splits_per_scale) != (1, 1):
            raise ValueError(
                f"plain_vae|is True with {self.number_of_scales} scales of {self.initial_splits_per_scale} groups|one "
                "scale of one group, or False"
            )
        if self.arch_instance == "mbconv_den":
            # Where its grouped cells are, counted in halvings.
            blocks, first = self.num_blocks_prepost, 1
            if self.postprocess_doubling == "first" and self.num_cells_per_block_prepost.decoder > 1:
                first = 0
            for tower, places in (("encoder", range(blocks)), ("decoder", range(first, blocks + 1))):
                channels = getattr(self.channel_towers, tower)
                if blocks and any(3 * channels * self.channel_multiplier**i % 8 for i in places):
                    raise ValueError(
                        f"channel_towers|has {channels} channels in the {tower}, which mbconv_den puts into 8 groups|a "
                        "multiple of 8"
                    )
        if self.sampling_method == "coupled_logistic_mixture" and self.image_channels != 3:
            raise ValueError(
                f"sampling_method|is coupled_logistic_mixture with image_channels {self.image_channels}|3 channels, or "
                "bernoulli or logistic_mixture for grey images"
            )
        if self.dataset.binarize and self.sampling_method != "bernoulli":
            raise ValueError(
                f"dataset.binarize|is True with sampling_method {self.sampling_method}|bernoulli, or False"
            )
        channels = self.channel_towers.encoder
        # Every halving cell's skip gives a quarter of its channels to each of four convolutions.
        if halvings and (channels * self.channel_multiplier) % 4:
            raise ValueError(
                f"channel_towers|has {channels} channels in the encoder, times channel_multiplier "
                f"{self.channel_multiplier} at each halving|a product that divides by 4"
            )
        schedule = self.training_parameters
        if schedule.learning_rate_min > schedule.learning_rate:
            raise ValueError(
                f"training_parameters.learning_rate_min|is {schedule.learning_rate_min:g}|at most learning_rate, "
                f"which is {schedule.learning_rate:g}"
            )
        if schedule.warmup_steps is not None and schedule.warmup_portion is not None:
            raise ValueError(
                f"training_parameters.warmup_steps|is {schedule.warmup_steps} beside warmup_portion "
                f"{schedule.warmup_portion:g}|one of the two"
            )
        return self


def _filled(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`data`, with `defaults` for the keys that it lacks, in sections too."""
    result = dict(data)
    for key, default in defaults.items():
        if key not in data:
            result[key] = default
        elif isinstance(default, dict) and isinstance(data[key], dict):
            result[key] = _filled(data[key], default)
    return result


def groups_per_scale(config: Config) -> tuple[int, ...]:
    """Number of latent groups at each scale, finest first: n, max(min_splits, n // exponential_scaling), ..."""
    groups = [config.initial_splits_per_scale]
    while len(groups) < config.number_of_scales:
        groups.append(max(config.min_splits, groups[-1] // config.exponential_scaling))
    return tuple(groups)


# ---------------------------------------------------------------------------------------------------- reading


def available_configs() -> list[str]:
    """Names of the YAML files in `model_configs/`, of the working directory and of the project."""
    return sorted({file.stem for folder in _config_folders() for file in folder.glob("*.yaml")})


def config_path(name: str | Path) -> Path:
    """The YAML file of a config given by name or by path. Raises ConfigError with the nearest names."""
    as_path = Path(name)
    if as_path.suffix in (".yaml", ".yml") and as_path.is_file():
        return as_path
    for folder in _config_folders():
        if (file := folder / f"{name}.yaml").is_file():
            return file
    names = available_configs()
    nearest = difflib.get_close_matches(as_path.stem, names, n=3, cutoff=0.5) or names
    raise ConfigError(
        f"there is no config '{name}': neither a YAML file nor a name in {CONFIG_FOLDER}/; "
        f"did you mean {' or '.join(nearest) if nearest else 'to run this in the folder that holds ' + CONFIG_FOLDER}?"
    )


def load_config(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read and validate a config.

    name: the name of a file in `model_configs/` or the path of a YAML file.
    overrides: `key=value` texts, the key dotted (`training_parameters.epochs=3`), the value YAML.
    Raises ConfigError.
    """
    path = config_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text file: {error}.") from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: list[str] | tuple[str, ...] = (), source: str = "the config") -> Config:
    """Validate the text of a YAML file; `source` names it in messages. Raises ConfigError."""
    data, lines = _read_yaml(text, source)
    places = {key: f"{source}, line {line}" for key, line in lines.items()}
    for override in overrides:
        key, value = _parse_override(override)
        _set(data, key, value, override)
        places = {k: place for k, place in places.items() if not k.startswith(f"{key}.")}
        places[key] = f"--set {override}"
        for parent in _parents(key):
            places.setdefault(parent, f"--set {override}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, places, source)) from None


def config_from_dict(data: dict[str, Any], source: str) -> Config:
    """A config from the plain dictionary that a checkpoint carries. Raises ConfigError."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, {}, source)) from None


def config_to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default spelled out; it loads as the same config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary to dotted keys: {'dataset': {'name': 'folder'}} becomes {'dataset.name': 'folder'}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


# ---------------------------------------------------------------------------------------------------- details


def _config_folders() -> list[Path]:
    here, project = Path(CONFIG_FOLDER), Path(__file__).resolve().parent.parent / CONFIG_FOLDER
    return [here] if here.resolve() == project else [here, project]


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-2 as a number (YAML 1.2), which PyYAML takes for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's dictionary, and the line of every key."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _key_lines(node, source)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or "it has a character that YAML does not allow"
        raise ConfigError(f"{place}: this is not valid YAML ({problem}); compare it with model_configs/.") from None
    except RecursionError:
        raise ConfigError(f"{source}: a section of this file contains itself, or is nested too deeply.") from None
    except ValueError as error:  # a date or a number that only looks like one
        raise ConfigError(f"{source}: one of the values of this file cannot be read ({error}).") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a config is a list of 'key: value' lines, but this file holds {_show(data)}.")
    return data, lines


def _key_lines(node: yaml.Node | None, source: str, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(f"{source}, line {line}: {key} stands here a second time; keep one of the two.")
            lines[key] = line
            lines |= _key_lines(value_node, source, f"{key}.")
    return lines


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as key=value, such as training_parameters.epochs=3.")
    try:
        return key.strip(), yaml.load(value, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {override}: the value after '=' is not valid YAML.") from None


def _set(data: dict[str, Any], key: str, value: Any, override: str) -> None:
    *parents, last = key.split(".")
    section = data
    for depth, parent in enumerate(parents):
        below = section[parent] = {} if section.get(parent) is None else section[parent]
        if parent in TOWER_KEYS:
            below = section[parent] = _same_towers(below)
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a single value.")
        section = below
    section[last] = value
    if last in WARMUPS:  # the newest way counts
        for other in set(WARMUPS) - {last}:
            section.pop(other, None)


def _parents(key: str) -> list[str]:
    """Of `a.b.c`: `a.b` and `a`."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]


_ALLOWED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "string_type": "a text",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a list of 'key: value' lines",
    "model_attributes_type": "a list of 'key: value' lines",
    "dict_type": "a list of 'key: value' lines",
}


def _explain(error: ValidationError, places: dict[str, str], source: str) -> str:
    """One sentence for the first problem: where, which key, what was found, what is allowed."""
    problems = error.errors()
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":  # from Config._possible: key|found|allowed
        key, found, allowed = str(problem["ctx"]["error"]).split("|")
        sentence = f"{key} {found}; allowed: {allowed}"
    elif problem["type"] == "extra_forbidden":
        *section, last = (str(part) for part in problem["loc"])
        known = _known_keys(section)
        nearest = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
        sentence = f"{key} is not a key of a config; {hint}"
    elif problem["type"] == "missing":
        sentence = f"the key {key} is missing; every config must say it"
    else:
        template = _ALLOWED.get(problem["type"])
        allowed = template.format(**problem.get("ctx", {})) if template else problem["msg"]
        if key in TOWER_KEYS:
            allowed = f"a whole number, or {allowed}"
        sentence = f"{key} is {_show(problem['input'])}; allowed: {allowed}"
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    return f"{_place(key, places, source)}: {sentence}{more}" + ("" if sentence.endswith("?") else ".")


def _place(key: str, places: dict[str, str], source: str) -> str:
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, source)


def _known_keys(section: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in section:
        annotation = model.model_fields[part].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, dict | list):
        return f"a {'section' if isinstance(value, dict) else 'list'}"
    return str(value)
