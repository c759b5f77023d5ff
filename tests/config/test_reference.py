"""The reference of all keys, printed by a command and kept in docs/config.md."""

import pytest

from nvae.config.reference import as_text, reference
from nvae.models.families import FAMILIES, config_class
from nvae.models.nvae.config import Towers
from nvae.schema import DATASETS, Section


def sections() -> list[type[Section]]:
    models = [config_class({"family": family}) for family in FAMILIES]
    schedules = [model.model_fields["training_parameters"].annotation for model in models]
    return [*models, *schedules, *DATASETS.values(), Towers]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_has_a_description_of_one_line(section):
    for key, field in section.model_fields.items():
        assert field.description, key
        assert "\n" not in field.description, key
        assert field.description.endswith("."), key
        assert "|" not in field.description, key  # would end a cell of the page's tables


def test_reference_has_every_key_with_its_default_and_bounds():
    rows = {row.key: row for table in reference() for row in table.rows}
    assert rows["n_mix"][1:3] == ("a whole number from 1 to 1,000", "3 (nvlabs: 10)")
    assert rows["number_of_scales"].default == ""
    assert rows["latents_per_scale"].allowed == "a list, each a whole number from 0 to 100"
    assert rows["unet_channels"].allowed.endswith(", a multiple of 16")
    assert rows["dataset.percentiles"].allowed == "a list, each a number from 0 to 100, or null"
    nvae = {row.key: row for table in reference(["nvae"]) for row in table.rows}
    for of_family, betas, threshold in ((nvae, "[0.9, 0.999]", "null"), (rows, "[0.9, 0.9]", "400")):
        assert of_family["training_parameters.optimizer_betas"].default == betas
        assert of_family["training_parameters.gradient_skip_threshold"].default == threshold
    for section in sections()[:-1]:
        prefix = {"dataset": "dataset.", "training": "training_parameters."}
        kind = "dataset" if section in DATASETS.values() else "training" if "seed" in section.model_fields else ""
        keys = {prefix.get(kind, "") + key for key in section.model_fields} - {"dataset", "training_parameters"}
        assert keys <= rows.keys()


def test_config_command_prints_the_reference(command):
    assert command("-m", "config", "nvae").out == as_text(reference(["nvae"])) + "\n"
    command("-m", "config", "nvea").assert_refused("nvea")
