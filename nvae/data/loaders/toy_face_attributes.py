"""The attributes of toy faces, drawn from an index.

Every attribute of face number i comes from a random generator seeded with i, independently of the other attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

Color = tuple[int, int, int]
Point = tuple[float, float]

SKINS: list[Color] = [
    (255, 224, 196),
    (246, 200, 160),
    (226, 168, 120),
    (190, 128, 84),
    (146, 92, 60),
    (98, 62, 44),
    (168, 214, 150),  # green
]
HAIR_COLORS: list[Color] = [
    (38, 30, 34),
    (92, 58, 38),
    (160, 100, 52),
    (236, 196, 96),
    (206, 84, 44),
    (176, 176, 186),
    (226, 96, 150),
    (70, 110, 200),
]
BACKGROUNDS: list[Color] = [
    (250, 214, 110),
    (126, 200, 222),
    (150, 210, 150),
    (244, 160, 140),
    (190, 160, 224),
    (236, 236, 226),
    (84, 104, 150),
]
CLOTHES: list[Color] = [(210, 60, 70), (50, 90, 170), (60, 140, 90), (245, 245, 245), (60, 60, 70), (240, 170, 50)]
EYE_COLORS: list[Color] = [(70, 46, 34), (60, 110, 190), (70, 140, 80), (40, 40, 46)]
HAT_COLORS: list[Color] = [(200, 50, 60), (40, 80, 150), (70, 70, 80), (80, 160, 120)]
INK: Color = (44, 34, 40)
WHITE: Color = (255, 255, 255)

HAIR_STYLES = ("bald", "short", "fringe", "bob", "long", "curly", "mohawk", "bun", "pigtails")
EYES = ("round", "wide", "sleepy", "almond")
MOODS = ("smile", "grin", "laugh", "calm", "surprise", "frown", "smirk")
GLASSES = ("none", "none", "none", "round", "square")
HATS = ("none", "none", "none", "none", "beanie", "cap", "top hat", "party hat", "crown")
BEARDS = ("none", "none", "none", "none", "full", "moustache")
CHEEKS = ("plain", "blush", "freckles")
BACKDROPS = ("plain", "gradient", "sun")


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

    def one_of(choices: Sequence) -> object:
        return choices[random.integers(len(choices))]

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    return Face(
        skin=one_of(SKINS),
        head_width=between(0.42, 0.52),
        head_height=between(0.50, 0.60),
        hair_style=one_of(HAIR_STYLES),
        hair_color=one_of(HAIR_COLORS),
        eyes=one_of(EYES),
        eye_color=one_of(EYE_COLORS),
        eye_size=between(0.105, 0.135),
        eye_distance=between(0.19, 0.23),
        gaze=(between(-1, 1), between(-0.6, 0.6)),
        brow_angle=between(-18, 18),
        brow_height=between(0.0, 0.05),
        nose=between(0.04, 0.08),
        mood=one_of(MOODS),
        mouth_width=between(0.17, 0.23),
        cheeks=one_of(CHEEKS),
        beard=one_of(BEARDS),
        glasses=one_of(GLASSES),
        hat=one_of(HATS),
        hat_color=one_of(HAT_COLORS),
        clothes=one_of(CLOTHES),
        backdrop=one_of(BACKDROPS),
        background=one_of(BACKGROUNDS),
        tilt=between(-6, 6),
        shift=(between(-0.04, 0.04), between(0.03, 0.09)),
        scale=between(1.18, 1.28),
    )


ATTRIBUTES = tuple(field.name for field in fields(Face))
