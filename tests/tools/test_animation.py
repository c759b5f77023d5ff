import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nvae.errors import UserError
from nvae.tools.animation import save_animation

ABOUT = {"seeds": [1, 2], "temperature": 0.7, "model": "gesichter_ä.model"}
COLORS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.2, 0.2, 0.2]])
FORMATS = pytest.mark.parametrize("format", ["gif", "mp4"])


def plain(colors, side=8):
    """Images of one color each."""
    return colors[:, :, None, None].expand(-1, -1, side, side)


def batches(images):
    return iter([images[:2], images[2:]])


def frames_of(path, format):
    """(F, H, W, 3), as a player shows them."""
    if format == "gif":
        with Image.open(path) as animation:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])
    import imageio_ffmpeg

    about, *frames = imageio_ffmpeg.read_frames(path)
    width, height = about["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames])


@pytest.fixture(autouse=True)
def ffmpeg(request):
    """Skips the tests of videos where the library for them is missing."""
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("format") == "mp4":
        pytest.importorskip("imageio_ffmpeg", reason="the extra 'video' is not installed")


def test_a_gif_has_every_frame_for_a_twentieth_of_a_second_and_never_ends(tmp_path):
    path = save_animation(batches(plain(COLORS)), 5, tmp_path / "new", "walk", "gif", ABOUT, side=20)
    assert path == tmp_path / "new" / "walk.gif"
    with Image.open(path) as animation:
        assert animation.n_frames == 5
        assert animation.info["loop"] == 0
        assert animation.size == (24, 24), "8 pixels three times are the first 20 and more"
        assert json.loads(animation.info["comment"]) == ABOUT
        durations, found = [], []
        for frame in ImageSequence.Iterator(animation):
            durations.append(frame.info["duration"])
            found.append(np.asarray(frame.convert("RGB")).astype(float))
    assert durations == [50] * 5
    expected = plain(COLORS, 24).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(np.stack(found) - expected).max() <= 16
    assert os.listdir(tmp_path / "new") == ["walk.gif"]


def test_a_small_frame_is_enlarged_and_a_large_one_is_left_alone(tmp_path):
    for side, expected in ((8, 104), (96, 192), (120, 120)):
        path = save_animation([torch.rand(2, 3, side, side)], 2, tmp_path, "a", "gif", ABOUT, side=100)
        with Image.open(path) as animation:
            assert animation.size == (expected, expected)


def test_the_comment_of_a_gif_may_be_long(tmp_path):
    about = {"seeds": list(range(500))}
    with Image.open(save_animation([plain(COLORS)], 5, tmp_path, "a", "gif", about, 8)) as animation:
        assert json.loads(animation.info["comment"]) == about


def test_frames_that_are_alike_take_their_time_too(tmp_path):
    path = save_animation([plain(COLORS[[0, 0, 0, 1, 1]])], 5, tmp_path, "a", "gif", ABOUT, 8)
    with Image.open(path) as animation:
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(animation)) == 5 * 50


def test_an_enlarged_frame_is_the_image(tmp_path):
    """A dark left and a bright right half, far from their border."""
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1
    with Image.open(save_animation([image, 1 - image], 2, tmp_path, "a", "gif", ABOUT, 64)) as animation:
        for index, (left, right) in enumerate([(0, 255), (255, 0)]):
            animation.seek(index)
            frame = np.asarray(animation.convert("RGB")).astype(int)
            assert np.abs(frame[:, :24] - left).max() <= 16
            assert np.abs(frame[:, 40:] - right).max() <= 16


@FORMATS
def test_grey_images_are_fine(tmp_path, format):
    shades = torch.tensor([[0.0], [0.5], [1.0], [0.25]])
    path = save_animation(batches(plain(shades)), 4, tmp_path, "a", format, ABOUT, 16)
    found = frames_of(path, format).reshape(4, -1, 3).astype(float).mean(1)
    assert np.abs(found - shades.numpy() * 255).max() < 10


@pytest.mark.parametrize("format", ["mp4"])
def test_a_video_has_every_frame_twenty_in_a_second(tmp_path, format):
    import imageio_ffmpeg

    path = save_animation(batches(plain(COLORS)), 5, tmp_path / "new", "walk", format, ABOUT, side=60)
    assert path == tmp_path / "new" / "walk.mp4"
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(path)
    assert (frames, seconds) == (5, pytest.approx(0.25))
    found = frames_of(path, format)
    assert found.shape == (5, 64, 64, 3)
    assert np.abs(found.astype(float).mean((1, 2)) - COLORS.numpy() * 255).max() < 24, "a video's colors are not exact"
    assert json.dumps(ABOUT).encode() in path.read_bytes()
    assert os.listdir(tmp_path / "new") == ["walk.mp4"]


@FORMATS
def test_no_file_is_ever_replaced(tmp_path, format):
    first = save_animation([plain(COLORS)], 5, tmp_path, "cherry_0.7_x", format, ABOUT, 8)
    content = first.read_bytes()
    second = save_animation([plain(COLORS.flip(0))], 5, tmp_path, "cherry_0.7_x", format, ABOUT, 8)
    assert first.read_bytes() == content != second.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [f"cherry_0.7_x.{format}", f"cherry_0.7_x_2.{format}"]


@FORMATS
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, format):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.(gif|mp4) could not be saved.*choose a folder"):
        save_animation([plain(COLORS)], 5, tmp_path / "file", "a", format, ABOUT, 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on the size of files, which only Unix has")
@FORMATS
def test_a_disk_that_fills_up_while_writing_is_one_sentence_and_leaves_nothing(tmp_path, format):
    import resource
    import signal

    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match="could not be saved") as error:
            save_animation([images], 5, tmp_path, "a", format, ABOUT, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(tmp_path) == []


def no_work():
    pytest.fail("what is missing is said before the work")
    yield


def test_without_the_library_a_video_names_the_extra_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"'video'.*pip install -e '\.\[video\]'.*GIF needs nothing more"):
        save_animation(no_work(), 5, tmp_path, "a", "mp4", ABOUT)
    assert os.listdir(tmp_path) == []
    save_animation([plain(COLORS)], 5, tmp_path, "a", "gif", ABOUT, 8)
