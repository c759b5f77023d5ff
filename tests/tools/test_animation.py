import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nvae.data.images import to_pixels
from nvae.data.pictures.metadata import read_metadata
from nvae.system.errors import UserError
from nvae.tools.animation import save_animation

METADATA = {"seeds": [1, 2], "temperature": 0.7, "model": "gesichter_ä.model"}
COLORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.2, 0.2, 0.2]])
FORMATS = pytest.mark.parametrize("file_format", ["webp", "gif", "mp4"])
TOLERANCE = {"gif": 16, "webp": 16, "mp4": 24}  # of colors, in 255ths


def plain(colors, side=8):
    """Return images of one color each."""
    return colors[:, :, None, None].expand(-1, -1, side, side)


def frames_of(path):
    """Return the frames of an animation, (F, H, W, 3)."""
    if path.suffix != ".mp4":
        with Image.open(path) as animation:
            return np.stack([np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(animation)])
    import imageio_ffmpeg

    metadata, *frames = imageio_ffmpeg.read_frames(path)
    width, height = metadata["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(float) for frame in frames])


@pytest.fixture(autouse=True)
def ffmpeg(request):
    """Skips the tests of MP4 if the library is missing."""
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("file_format") == "mp4":
        pytest.importorskip("imageio_ffmpeg", reason="the extra 'video' is not installed")


@FORMATS
def test_animation_has_every_frame_in_its_color(tmp_path, file_format):
    batches = iter([plain(COLORS[:2]), plain(COLORS[2:])])
    path = save_animation(batches, tmp_path / "new", "walk", file_format, METADATA, side=60)
    assert path == tmp_path / "new" / f"walk.{file_format}"
    frames = frames_of(path)
    assert frames.shape == (5, 64, 64, 3)  # 64 is the first multiple of 8 from 60 on
    assert np.abs(frames.mean((1, 2)) - COLORS.numpy() * 255).max() <= TOLERANCE[file_format]
    assert os.listdir(tmp_path / "new") == [path.name]


@FORMATS
def test_animation_shows_twenty_frames_per_second_without_end(tmp_path, file_format):
    path = save_animation([plain(COLORS[[0, 0, 0, 1, 1]])], tmp_path, "a", file_format, METADATA, 16)
    if file_format == "mp4":
        import imageio_ffmpeg

        assert imageio_ffmpeg.count_frames_and_secs(path) == (5, pytest.approx(0.25))
        assert json.dumps(METADATA).encode() in path.read_bytes()
        return
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        durations = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            animation.load()
            durations.append(animation.info["duration"])
    assert sum(durations) == 5 * 50


@pytest.mark.parametrize("file_format", ["webp", "gif"])
def test_animation_metadata_is_read_back(tmp_path, file_format):
    metadata = METADATA | {"seeds": list(range(500))}
    path = save_animation([plain(COLORS)], tmp_path, "a", file_format, metadata, 8)
    texts = read_metadata(path)
    assert json.loads(texts["seeds"]) == metadata["seeds"]
    assert (texts["temperature"], texts["model"]) == ("0.7", METADATA["model"])


@pytest.mark.slow
@pytest.mark.parametrize(("side", "expected"), [(8, 256), (96, 288), (300, 300)])
def test_animation_frames_have_256_pixels_or_more(tmp_path, side, expected):
    with Image.open(save_animation([torch.rand(2, 3, side, side)], tmp_path, "a", "gif", METADATA)) as animation:
        assert animation.size == (expected, expected)


@pytest.mark.parametrize(("file_format", "decibels"), [("webp", 42), ("gif", 33)])
def test_animation_of_smooth_images_has_no_blocks_or_contour_lines(tmp_path, file_format, decibels):
    ends = 0.2 + 0.6 * torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ends = torch.nn.functional.interpolate(ends, (128, 128), mode="bicubic").clamp(0, 1)
    images = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, 12)[:, None, None, None])
    frames = frames_of(save_animation([images], tmp_path, "a", file_format, METADATA, 128))
    errors = np.square(frames - to_pixels(images)).mean((1, 2, 3))
    assert 10 * np.log10(255**2 / errors.max()) > decibels


def test_gif_has_no_dithering(tmp_path):
    ramp = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    frames = frames_of(save_animation([ramp], tmp_path, "a", "gif", METADATA, 32))
    assert (frames == frames[0, 0]).all()  # equal rows and frames stay equal


@FORMATS
def test_animation_of_gray_images(tmp_path, file_format):
    shades = torch.tensor([[0.0], [0.5], [1.0], [0.25]])
    frames = frames_of(save_animation([plain(shades)], tmp_path, "a", file_format, METADATA, 16))
    assert np.abs(frames.reshape(4, -1, 3).mean(1) - shades.numpy() * 255).max() < 10


def test_animation_in_a_folder_is_never_replaced_and_a_named_file_is_used(tmp_path):
    first = save_animation([plain(COLORS)], tmp_path, "walk_0.7", "gif", METADATA, 8)
    content = first.read_bytes()
    save_animation([plain(COLORS.flip(0))], tmp_path, "walk_0.7", "gif", METADATA, 8)
    assert first.read_bytes() == content
    assert save_animation([plain(COLORS)], tmp_path / "mine.gif", "walk", "gif", METADATA, 8).name == "mine.gif"
    assert sorted(os.listdir(tmp_path)) == ["mine.gif", "walk_0.7.gif", "walk_0.7_2.gif"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files, which only Unix has")
@FORMATS
def test_animation_full_disk_is_an_error_and_leaves_nothing(tmp_path, file_format):
    import resource
    import signal

    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match=r"a\."):
            save_animation([images], tmp_path, "a", file_format, METADATA, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


def test_mp4_without_the_library_is_refused_before_the_work(tmp_path, monkeypatch):
    def no_work():
        pytest.fail("images were made")
        yield

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="'video'"):
        save_animation(no_work(), tmp_path, "a", "mp4", METADATA)
    assert os.listdir(tmp_path) == []
