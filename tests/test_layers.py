"""The layer order of the package: each layer imports from its own and from lower layers only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# Top to bottom. A name is a module or a package of nvae/; tools, inference and the like may import within themselves.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"training"},
    {"tools"},
    {"evaluation"},
    {"inference"},
    {"interop"},
    {"checkpoint", "summary", "objective", "optim"},
    {"data"},
    {"config"},
    {"models"},
    {"schema"},
    {"system"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
PACKAGE = Path(__file__).resolve().parent.parent / "nvae"
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def imported(file: Path) -> set[str]:
    """The modules and packages of nvae/ that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("nvae.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_imports_from_lower_layers_only(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {name for name in imported(file) if LEVELS[name] < LEVELS[own]}
    assert not above


EXTENDS = {"dvp": {"ladder"}}  # a family that is another family with a part more


def test_families_import_only_the_family_that_they_extend():
    families = {folder.name for folder in (PACKAGE / "models").iterdir() if (folder / "network.py").exists()}
    for family in families:
        others = families - {family} - EXTENDS.get(family, set())
        for file in (PACKAGE / "models" / family).glob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not any(f"nvae.models.{other}." in text for other in others), file


def test_shared_code_names_no_family():
    """Nothing outside a family's folder, its importers and tests knows the family's classes."""
    shared = [PACKAGE / "objective.py", PACKAGE / "models" / "hierarchy.py", PACKAGE / "models" / "distributions.py"]
    shared += [
        file for folder in ("inference", "evaluation", "training", "tools") for file in (PACKAGE / folder).rglob("*.py")
    ]
    for file in shared:
        text = file.read_text(encoding="utf-8")
        assert not any(f"nvae.models.{family}" in text for family in ("nvae", "ladder", "dvp", "priors")), file
