"""Packages for setuptools; everything else is in pyproject.toml. The configs travel as nvae/model_configs/."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["nvae", "nvae.*"]), "nvae.model_configs"],
    package_dir={"nvae.model_configs": "model_configs"},
    package_data={
        "nvae.model_configs": ["*.yaml"],
        "nvae.data.loaders": ["*.yaml"],
        "nvae.schema": ["*.yaml"],
        "nvae.evaluation.quality.extractors": ["*.yaml"],
        "nvae.training.report": ["page.*"],
    },
)
