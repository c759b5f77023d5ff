"""Draw a toy face with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from nvae.data.loaders.toy_face_attributes import Color, Face, Point

INK: Color = (44, 34, 40)
WHITE: Color = (255, 255, 255)


def draw(face: Face, size: int) -> Image.Image:
    """Draw a face as an RGB image of size x size pixels, larger at first and scaled down for smooth edges."""
    canvas = size * max(2, math.ceil(128 / size))
    image = _backdrop(face, canvas)
    layer = Image.new("RGBA", (canvas, canvas), (*face.skin, 0))
    _Artist(face, layer).draw()
    angle, (dx, dy) = math.radians(face.tilt), face.shift
    cosine, sine = math.cos(angle) / face.scale, math.sin(angle) / face.scale
    half = canvas / 2
    x0, y0 = half * (1 + dx), half * (1 + dy)  # new position of the layer's center
    posed = layer.transform(
        layer.size,
        Image.Transform.AFFINE,
        (cosine, sine, half - cosine * x0 - sine * y0, -sine, cosine, half + sine * x0 - cosine * y0),
        Image.Resampling.BILINEAR,
    )
    image.paste(posed, (0, 0), posed)
    return image.resize((size, size), Image.Resampling.BOX)


def _shade(color: Color, factor: float) -> Color:
    """Darken (factor below 1) or lighten (factor above 1) a color."""
    if factor <= 1:
        return tuple(int(c * factor) for c in color)
    return tuple(int(255 - (255 - c) / factor) for c in color)


def _backdrop(face: Face, canvas: int) -> Image.Image:
    image = Image.new("RGB", (canvas, canvas), face.background)
    pen = ImageDraw.Draw(image)
    if face.backdrop == "gradient":
        for y in range(canvas):
            pen.line([(0, y), (canvas, y)], fill=_shade(face.background, 1.15 - 0.45 * y / canvas))
    elif face.backdrop == "sun":
        margin = canvas * 0.07
        pen.ellipse([margin, margin, canvas - margin, canvas - margin], fill=_shade(face.background, 1.9))
    return image


class _Artist:
    """Draw one face, upright and centered. The origin is the image's center; y points down."""

    def __init__(self, face: Face, layer: Image.Image) -> None:
        self.face = face
        self.pen = ImageDraw.Draw(layer)
        self.half = layer.width / 2
        self.middle = 0.02  # height of the head's center

    def draw(self) -> None:
        self.hair_behind()
        self.body()
        self.head()
        self.cheeks()
        self.beard()
        self.hair_in_front()
        self.brows()
        self.eyes()
        self.nose()
        self.mouth()
        self.glasses()
        self.hat()

    # Shapes, in the coordinates of a Face.

    def _pixel(self, x: float, y: float) -> Point:
        return (1 + x) * self.half, (1 + y) * self.half

    def _box(self, x: float, y: float, rx: float, ry: float) -> list[Point]:
        return [self._pixel(x - rx, y - ry), self._pixel(x + rx, y + ry)]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color | None, outline: float = 0) -> None:
        width = round(outline * self.half)
        self.pen.ellipse(self._box(x, y, rx, ry), fill=fill, outline=INK if width else None, width=width)

    def polygon(self, points: Sequence[Point], fill: Color) -> None:
        self.pen.polygon([self._pixel(*point) for point in points], fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Color = INK) -> None:
        pixels = [self._pixel(*point) for point in points]
        self.pen.line(pixels, fill=fill, width=max(1, round(width * self.half)), joint="curve")

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, radius: float, fill: Color) -> None:
        self.pen.rounded_rectangle([self._pixel(x0, y0), self._pixel(x1, y1)], radius * self.half, fill=fill)

    def half_ellipse(self, x: float, y: float, rx: float, ry: float, start: int, end: int, fill: Color) -> None:
        self.pen.chord(self._box(x, y, rx, ry), start, end, fill=fill)

    def curve(self, x: float, y: float, rx: float, bend: float, width: float, fill: Color = INK) -> None:
        """Draw a parabola around (x, y), whose ends are `bend` higher than its middle."""
        steps = [i / 6 - 1 for i in range(13)]
        self.line([(x + rx * t, y - bend * t * t + bend / 2) for t in steps], width, fill)

    # The parts of a face, from back to front.

    def hair_behind(self) -> None:
        face, top = self.face, self.middle
        color = _shade(face.hair_color, 0.82)
        w, h = face.head_width, face.head_height
        if face.hair_style == "long":
            self.rectangle(-w - 0.13, top - h * 0.6, w + 0.13, top + h + 0.30, 0.30, color)
            self.ellipse(0, top - h * 0.25, w + 0.13, h * 0.92, color)
        elif face.hair_style == "bob":
            self.rectangle(-w - 0.12, top - h * 0.6, w + 0.12, top + h * 0.72, 0.22, color)
            self.ellipse(0, top - h * 0.25, w + 0.12, h * 0.92, color)
        elif face.hair_style == "curly":
            for i in range(13):
                angle = math.pi * (0.9 + 1.2 * i / 12)
                x, y = (w + 0.03) * math.cos(angle), top - 0.06 + (h + 0.02) * math.sin(angle)
                self.ellipse(x, y, 0.17, 0.17, color)
        elif face.hair_style == "bun":
            self.ellipse(0, top - h - 0.13, 0.19, 0.17, color)
        elif face.hair_style == "pigtails":
            for side in (-1, 1):
                self.ellipse(side * (w + 0.17), top + 0.08, 0.15, 0.28, color)

    def body(self) -> None:
        face, top = self.face, self.middle
        self.rectangle(-0.74, top + face.head_height + 0.16, 0.74, 1.6, 0.30, face.clothes)
        self.rectangle(-0.16, top + 0.3, 0.16, top + face.head_height + 0.24, 0.10, _shade(face.skin, 0.86))

    def head(self) -> None:
        face, top = self.face, self.middle
        for side in (-1, 1):
            self.ellipse(side * face.head_width, top + 0.04, 0.09, 0.12, _shade(face.skin, 0.9))
        self.ellipse(0, top, face.head_width, face.head_height, face.skin)

    def cheeks(self) -> None:
        face, y = self.face, self.middle + 0.17
        for side in (-1, 1):
            x = side * face.head_width * 0.62
            if face.cheeks == "blush":
                pink = tuple(int(0.6 * a + 0.4 * b) for a, b in zip(face.skin, (244, 90, 100), strict=True))
                self.ellipse(x, y, 0.095, 0.07, pink)
            elif face.cheeks == "freckles":
                for dx, dy in ((-0.05, 0.0), (0.0, 0.04), (0.05, -0.01)):
                    self.ellipse(x + dx, y + dy, 0.016, 0.016, _shade(face.skin, 0.66))

    def beard(self) -> None:
        face, top = self.face, self.middle
        color = _shade(face.hair_color, 0.9)
        if face.beard == "full":
            self.half_ellipse(0, top + 0.04, face.head_width, face.head_height, 12, 168, color)
            self.ellipse(0, top + 0.16, face.head_width * 0.66, 0.14, face.skin)
        elif face.beard == "moustache":
            for side in (-1, 1):
                self.ellipse(side * 0.09, top + 0.225, 0.11, 0.045, color)

    def hair_in_front(self) -> None:
        face, top = self.face, self.middle
        color, w, h = face.hair_color, face.head_width, face.head_height
        if face.hair_style == "bald":
            return
        if face.hair_style == "mohawk":
            self.polygon(
                [(-0.13, top - h * 0.66), (-0.15, top - h - 0.2), (0.15, top - h - 0.2), (0.13, top - h * 0.66)], color
            )
            self.ellipse(0, top - h * 0.66, 0.13, 0.06, color)
            return
        self.half_ellipse(0, top - 0.01, w + 0.035, h + 0.045, 202, 338, color)
        if face.hair_style == "fringe":
            self.rectangle(-w * 0.86, top - h * 0.62, w * 0.86, top - h * 0.36, 0.08, color)
        elif face.hair_style in ("bob", "long", "pigtails"):  # parted in the middle
            for side in (-1, 1):
                self.polygon(
                    [
                        (0, top - h * 0.98),
                        (side * w * 1.02, top - h * 0.30),
                        (side * w * 1.04, top - 0.02),
                        (side * w * 0.74, top - h * 0.38),
                    ],
                    color,
                )
        elif face.hair_style == "curly":
            for i in range(5):
                self.ellipse(w * 0.72 * (i - 2) / 2, top - h * 0.68 - 0.04 * (i % 2), 0.13, 0.11, color)

    def brows(self) -> None:
        face = self.face
        y = self.middle - 0.215 - face.brow_height
        rise = 0.11 * math.tan(math.radians(face.brow_angle))
        color = INK if face.hair_style == "bald" else _shade(face.hair_color, 0.6)
        for side in (-1, 1):
            x = side * face.eye_distance
            self.line([(x - side * 0.10, y + rise), (x + side * 0.11, y - rise)], 0.042, color)

    def eyes(self) -> None:
        face, y = self.face, self.middle - 0.05
        r = face.eye_size
        rx, ry = {"round": (r, r), "wide": (r * 1.15, r * 1.15), "sleepy": (r, r), "almond": (r * 1.2, r * 0.75)}[
            face.eyes
        ]
        iris = min(rx, ry) * 0.62
        for side in (-1, 1):
            x = side * face.eye_distance
            self.ellipse(x, y, rx, ry, WHITE, outline=0.022)
            gx, gy = x + face.gaze[0] * (rx - iris) * 0.8, y + face.gaze[1] * (ry - iris) * 0.8
            self.ellipse(gx, gy, iris, iris, face.eye_color)
            self.ellipse(gx, gy, iris * 0.55, iris * 0.55, INK)
            self.ellipse(gx - iris * 0.3, gy - iris * 0.35, iris * 0.28, iris * 0.28, WHITE)
            if face.eyes == "sleepy":
                self.half_ellipse(x, y, rx + 0.012, ry + 0.012, 190, 350, _shade(face.skin, 0.84))
                self.line([(x - rx, y - ry * 0.2), (x + rx, y - ry * 0.2)], 0.026)

    def nose(self) -> None:
        face, y = self.face, self.middle + 0.13
        self.ellipse(0, y, face.nose, face.nose * 0.75, _shade(face.skin, 0.78))

    def mouth(self) -> None:
        face, y, w = self.face, self.middle + 0.315, self.face.mouth_width
        red = (214, 84, 92)
        dark = (120, 30, 44) if sum(face.skin) > 330 else (250, 150, 150)  # light lips on dark skin
        if face.mood == "smile":
            self.curve(0, y, w, 0.13, 0.045, dark)
        elif face.mood == "grin":
            self.half_ellipse(0, y - 0.06, w, 0.15, 0, 180, dark)
            self.rectangle(-w * 0.8, y - 0.06, w * 0.8, y - 0.005, 0.02, WHITE)
        elif face.mood == "laugh":
            self.half_ellipse(0, y - 0.07, w, 0.21, 0, 180, dark)
            self.ellipse(0, y + 0.08, w * 0.5, 0.045, (236, 110, 120))
        elif face.mood == "calm":
            self.line([(-w * 0.75, y), (w * 0.75, y)], 0.045, dark)
        elif face.mood == "surprise":
            self.ellipse(0, y + 0.01, w * 0.45, 0.095, dark)
            self.ellipse(0, y + 0.05, w * 0.26, 0.045, red)
        elif face.mood == "frown":
            self.curve(0, y, w * 0.85, -0.12, 0.045, dark)
        elif face.mood == "smirk":
            self.line([(-w * 0.7, y + 0.02), (0, y + 0.03), (w * 0.8, y - 0.06)], 0.045, dark)

    def glasses(self) -> None:
        face, y = self.face, self.middle - 0.05
        if face.glasses == "none":
            return
        width = max(1, round(0.034 * self.half))
        inner = face.eye_distance - 0.165
        for side in (-1, 1):
            x = side * face.eye_distance
            if face.glasses == "round":
                self.pen.ellipse(self._box(x, y, 0.175, 0.175), outline=INK, width=width)
            else:
                box = self._box(x, y, 0.175, 0.145)
                self.pen.rounded_rectangle(box, 0.05 * self.half, outline=INK, width=width)
            self.line([(side * (face.eye_distance + 0.17), y), (side * face.head_width, y - 0.02)], 0.034)
        self.line([(-inner, y), (inner, y)], 0.034)

    def hat(self) -> None:
        face, top = self.face, self.middle
        w, h, color = face.head_width, face.head_height, face.hat_color
        brim = top - h * 0.52
        dark = _shade(color, 0.72)
        if face.hat == "beanie":
            self.half_ellipse(0, brim, w + 0.06, h * 0.62, 180, 360, color)
            self.rectangle(-w - 0.07, brim - 0.07, w + 0.07, brim + 0.06, 0.05, dark)
            self.ellipse(0, brim - h * 0.62, 0.09, 0.09, WHITE)
        elif face.hat == "cap":
            self.half_ellipse(0, brim, w + 0.05, h * 0.58, 180, 360, color)
            self.rectangle(-w - 0.05, brim - 0.05, w + 0.30, brim + 0.04, 0.04, dark)
        elif face.hat == "top hat":
            self.rectangle(-w * 0.8, brim - 0.46, w * 0.8, brim, 0.04, color)
            self.rectangle(-w * 0.8, brim - 0.14, w * 0.8, brim - 0.04, 0.0, (230, 200, 90))
            self.rectangle(-w - 0.14, brim - 0.05, w + 0.14, brim + 0.03, 0.04, dark)
        elif face.hat == "party hat":
            self.polygon([(-w * 0.62, brim + 0.02), (0, brim - 0.46), (w * 0.62, brim + 0.02)], color)
            self.polygon(
                [(-w * 0.36, brim - 0.16), (0.0, brim - 0.24), (w * 0.26, brim - 0.27), (w * 0.42, brim - 0.14)],
                (250, 220, 90),
            )
            self.ellipse(0, brim - 0.44, 0.075, 0.075, WHITE)
        elif face.hat == "crown":
            gold = (244, 200, 70)
            left, right = -w * 0.8, w * 0.8
            spikes = [(left, brim), (left - 0.05, brim - 0.32), (left * 0.5, brim - 0.14), (0, brim - 0.36)]
            self.polygon([*spikes, (right * 0.5, brim - 0.14), (right + 0.05, brim - 0.32), (right, brim)], gold)
            for x in (left * 0.62, 0, right * 0.62):
                self.ellipse(x, brim - 0.06, 0.045, 0.045, color)
