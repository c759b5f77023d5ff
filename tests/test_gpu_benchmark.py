"""The benchmark of a GPU, on a CPU and with a tiny network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_gpu_benchmark_measures_every_part_on_a_cpu(root, tmp_path):
    options = ["--device", "cpu", "--quick", "--minutes", "5", "--json", str(tmp_path / "gpu.json")]
    command = [sys.executable, str(root / "benchmarks" / "gpu.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(root)}
    table = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path).stdout
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) == 6 and not [row for row in rows if "error" in row or row.get("passed") is False]
    assert all(f"| {row['part']} |" in table for row in rows)
    assert all(row["images_per_second"] > 0 for row in rows if "passed" not in row)
