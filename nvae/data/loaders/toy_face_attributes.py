"""The attributes of toy faces, drawn from an index.

Every attribute of face number i comes from a random generator seeded with i, independently of the other attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Color = tuple[int, ...]  # red, green, blue
Point = tuple[float, float]

ATTRIBUTES: dict[str, dict[str, list[Any]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Face:
    """The attributes of one face. Lengths are in units of half the image's side, angles in degrees."""

    skin: Color
    head_width: float
    head_height: float
    hair_style: str
    hair_color: Color
    eyes: str
    eye_color: Color
    eye_size: float
    eye_distance: float
    gaze: Point
    brow_angle: float
    brow_height: float
    nose: float
    mood: str
    mouth_width: float
    cheeks: str
    beard: str
    glasses: str
    hat: str
    hat_color: Color
    clothes: Color
    backdrop: str
    background: Color
    tilt: float
    shift: Point
    scale: float


def face(index: int) -> Face:
    """Return the attributes of face number `index`."""
    random = np.random.default_rng([2007, index])
    values: dict[str, Any] = {}
    for name, rule in ATTRIBUTES.items():
        if "choices" in rule:
            value = rule["choices"][random.integers(len(rule["choices"]))]
        else:
            value = np.asarray(random.uniform(*np.transpose(rule["between"]))).tolist()
        values[name] = tuple(value) if isinstance(value, list) else value
    return Face(**values)
