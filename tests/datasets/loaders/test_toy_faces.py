from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from nvae.config import ConfigError
from nvae.data.loaders.toy_face_attributes import ATTRIBUTES, Face, face
from nvae.data.loaders.toy_face_drawing import draw
from nvae.data.loaders.toy_faces import FIRST_VALIDATION, draw_faces, load_toy_faces

FACE_7 = {
    "skin": (98, 62, 44),
    "head_width": 0.4803222884784907,
    "head_height": 0.5537379679598263,
    "hair_style": "fringe",
    "hair_color": (70, 110, 200),
    "eyes": "almond",
    "eye_color": (70, 46, 34),
    "eye_size": 0.11898654117659443,
    "eye_distance": 0.20513047073028298,
    "gaze": (-0.12888324745132573, -0.5308984322796326),
    "brow_angle": 16.72772261634026,
    "brow_height": 0.04187378919888331,
    "nose": 0.07121737738676275,
    "mood": "smirk",
    "mouth_width": 0.1764369651011682,
    "cheeks": "freckles",
    "beard": "none",
    "glasses": "round",
    "hat": "none",
    "hat_color": (200, 50, 60),
    "clothes": (50, 90, 170),
    "backdrop": "gradient",
    "background": (250, 214, 110),
    "tilt": 0.5278915074053661,
    "shift": (0.03946849911796022, 0.03928558017252493),
    "scale": 1.1930943916290444,
}


def test_face_attributes_are_a_function_of_the_index():
    attributes = dataclasses.asdict(face(7))
    for name, value in FACE_7.items():
        assert attributes[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    assert list(FACE_7) == list(ATTRIBUTES) == [field.name for field in dataclasses.fields(Face)]


def test_draw_faces_does_not_depend_on_the_order():
    forward, backward = draw_faces([3, 1, 2], 16), draw_faces([2, 1, 3, 3], 16)
    assert forward.dtype == np.uint8
    assert forward.shape == (3, 3, 16, 16)
    np.testing.assert_array_equal(forward, backward[[2, 1, 0]])
    np.testing.assert_array_equal(forward[0], backward[3])
    assert not np.array_equal(forward[0], forward[1])


@pytest.mark.slow
def test_draw_faces_is_the_same_in_another_process(root):
    program = (
        "import hashlib; from nvae.data.loaders.toy_faces import draw_faces;"
        "print(hashlib.sha256(draw_faces([5, 1_000_000_000], 32).tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    here = hashlib.sha256(draw_faces([5, 1_000_000_000], 32).tobytes()).hexdigest()
    assert other.stdout.strip() == here


@pytest.mark.parametrize("index", [0, 11, 23])
def test_draw_at_another_size_shows_the_same_face(index):
    large = np.asarray(draw(face(index), 128), dtype=float)
    for size in (64, 32, 16):
        small = np.asarray(draw(face(index), size), dtype=float)
        step = 128 // size
        shrunk = large.reshape(size, step, size, step, 3).mean((1, 3))
        assert np.abs(small - shrunk).mean() < 6, size  # of 255: outlines are rounded to whole pixels
        others = np.asarray(draw(face(index + 1), size), dtype=float)
        assert np.abs(others - shrunk).mean() > 20, size


def choices_of(name):
    return [tuple(choice) if isinstance(choice, list) else choice for choice in ATTRIBUTES[name]["choices"]]


def test_face_attributes_are_uniform():
    faces = [face(index) for index in range(2000)]
    for name in ("skin", "hair_style", "eyes", "mood"):
        choices = choices_of(name)
        counts = Counter(getattr(f, name) for f in faces)
        assert set(counts) == set(choices)
        expected = len(faces) / len(choices)
        chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_squared < 30, name  # at most 8 degrees of freedom: exceeded 2 times in 10,000


def test_face_attributes_are_independent():
    """Hair color given skin, as a table of counts; and two continuous attributes by their correlation."""
    faces = [face(index) for index in range(4000)]
    skins, hair_colors = choices_of("skin"), choices_of("hair_color")
    table = np.zeros((len(skins), len(hair_colors)))
    for f in faces:
        table[skins.index(f.skin), hair_colors.index(f.hair_color)] += 1
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 84  # 42 degrees of freedom: exceeded one time in 10,000
    correlation = np.corrcoef([(f.tilt, f.head_width, f.gaze[0], f.brow_angle) for f in faces], rowvar=False)
    assert np.abs(correlation - np.eye(4)).max() < 4 / len(faces) ** 0.5


def test_faces_of_different_indices_differ():
    indices = [*range(60), *range(1_000_000_000, 1_000_000_060)]
    images = {image.tobytes() for image in draw_faces(indices, 16)}
    assert len(images) == len(indices)


def test_toy_faces_parts_are_disjoint(make_config):
    config = make_config(dataset={"name": "toy_faces", "training_images": 40, "validation_images": 20})
    data = load_toy_faces(config)
    training = {image.numpy().tobytes() for image in data.training}
    validation = {image.numpy().tobytes() for image in data.validation}
    assert (len(training), len(validation)) == (40, 20)
    assert not training & validation
    np.testing.assert_array_equal(data.training[:3], draw_faces([0, 1, 2], config.input_dimension))


def test_toy_faces_training_images_are_bounded(make_config):
    make_config(dataset={"name": "toy_faces", "training_images": 10_000_000})
    with pytest.raises(ConfigError, match="training_images"):
        make_config(dataset={"name": "toy_faces", "training_images": 10_000_001})
    assert FIRST_VALIDATION > 10_000_000
