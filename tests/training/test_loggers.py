import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from PIL import Image

from nvae.training import loggers
from nvae.training.loggers import RunLogger, read_events, read_metrics

LINE = {"step": 3, "epoch": 1.0, "loss": 2.5, "kl_per_group": [0.5, 1.5]}


def run_logger(config, folder, step=9):
    warnings = []
    return RunLogger(folder, config, step, 2, warnings.append), warnings


def test_run_logger_keeps_lines_that_it_cannot_read(config, tmp_path, monkeypatch):
    text = "".join(json.dumps(LINE | {"step": step}) + "\n" for step in range(3))
    (tmp_path / "metrics.jsonl").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(loggers, "read_metrics", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        logger, warnings = run_logger(config, tmp_path)
    for step in (3, 4):
        logger.log(LINE | {"step": step})
    logger.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", 2)[0]] == [0, 1, 2, 3, 4]
    assert len(warnings) == 1


def test_run_logger_removes_lines_after_the_step(config, tmp_path):
    lines = [LINE | {"step": step} for step in (3, 9, 12)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logger, warnings = run_logger(config, tmp_path)
    logger.log(LINE | {"step": 10})
    logger.close()
    assert read_metrics(tmp_path / "metrics.jsonl", 2) == ([*lines[:2], LINE | {"step": 10}], 0)
    assert logger.metrics == [*lines[:2], LINE | {"step": 10}]
    assert warnings == []


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\xfe",
        b"null",
        b"[1, 2]",
        b"7",
        b'"text"',
        b'{"step": 3, "lo',
        b'{"epoch": 1.0}',
        b'{"step": "3", "epoch": 1.0}',
        b'{"step": 3.5, "epoch": 1.0}',
        b'{"step": true, "epoch": 1.0}',
        b'{"step": 3, "epoch": "x"}',
        b'{"step": 3, "epoch": 1.0, "loss": "x"}',
        b'{"step": 3, "epoch": 1.0, "loss": NaN}',
        b'{"step": 3, "epoch": 1.0, "loss": 1e999}',
        b'{"step": 3, "epoch": 1.0, "loss": {}}',
        b'{"step": 3, "epoch": 1.0, "kl_per_group": [1.0]}',
        b'{"step": 3, "epoch": 1.0, "kl_per_group": 1.0}',
        b'{"step": 3, "epoch": 1.0, "kl_per_group": [1.0, null]}',
        b'{"step": 3, "epoch": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
    ids=lambda damage: damage[:60],
)
@pytest.mark.parametrize("first", [True, False])
def test_run_logger_leaves_out_damaged_lines_with_one_warning(config, tmp_path, damage, first):
    whole = json.dumps(LINE).encode()
    lines = [damage, whole, damage] if first else [whole, damage]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    logger, warnings = run_logger(config, tmp_path)
    logger.close()
    assert len(warnings) == 1
    assert read_metrics(tmp_path / "metrics.jsonl", 2) == ([LINE], 0)


def test_run_logger_a_failing_logger_is_one_warning(config, tmp_path, monkeypatch):
    class Full:
        def log(self, metrics):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(loggers, "LOGGERS", {"full": lambda *_: Full()} | loggers.LOGGERS)
    logger, warnings = run_logger(config, tmp_path)
    for step in (10, 11):
        logger.log(LINE | {"step": step})
    logger.close()
    assert len(warnings) == 1
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", 2)[0]] == [10, 11]


def test_run_logger_takes_another_logger(config, tmp_path, monkeypatch):
    calls = []

    class Recorder:
        def __init__(self, folder, config, step):
            calls.append((folder, config, step))

        def log(self, metrics):
            calls.append(metrics)

        def log_images(self, tag, image, step):
            calls.append((tag, image.size, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setattr(loggers, "LOGGERS", {"recorder": Recorder, "not wanted": lambda *_: None})
    logger, _ = run_logger(config, tmp_path)
    logger.log(LINE)
    logger.log_images("samples", Image.new("RGB", (4, 2)), 3)
    logger.close()
    assert calls == [(tmp_path, config, 9), LINE, ("samples", (4, 2), 3), "closed"]


EVENT = {"step": 3, "epoch": 1.5, "kind": "recovery", "text": "back to step 2"}


def test_run_logger_appends_events_and_keeps_them_when_a_run_continues(config, tmp_path):
    for step in (9, 2):  # the second one continues from an earlier step
        logger, warnings = run_logger(config, tmp_path, step=step)
        logger.log_event(EVENT | {"step": step})
        logger.close()
    assert read_events(tmp_path / "events.jsonl") == ([EVENT | {"step": 9}, EVENT | {"step": 2}], 0)
    assert warnings == []


def test_run_logger_event_after_a_line_that_was_cut_off(config, tmp_path):
    (tmp_path / "events.jsonl").write_bytes(json.dumps(EVENT).encode() + b'\n{"step": 4, "ep')
    logger, _ = run_logger(config, tmp_path)
    logger.log_event(EVENT | {"step": 5})
    assert read_events(tmp_path / "events.jsonl") == ([EVENT, EVENT | {"step": 5}], 1)


@pytest.mark.parametrize("change", [{"step": 1.5}, {"step": True}, {"epoch": None}, {"kind": 1}, {"text": []}], ids=str)
def test_read_events_leaves_out_damaged_ones(tmp_path, change):
    (tmp_path / "events.jsonl").write_text(json.dumps(EVENT | change))
    assert read_events(tmp_path / "events.jsonl") == ([], 1)
    assert read_events(tmp_path / "missing.jsonl") == ([], 0)


def test_run_logger_event_that_cannot_be_written_is_a_warning_and_written_later(config, tmp_path):
    logger, warnings = run_logger(config, tmp_path)
    (tmp_path / "events.jsonl").mkdir()
    for step in (3, 4):
        logger.log_event(EVENT | {"step": step})
    assert len(warnings) == 1
    (tmp_path / "events.jsonl").rmdir()
    logger.close()
    assert read_events(tmp_path / "events.jsonl") == ([EVENT, EVENT | {"step": 4}], 0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 32 KiB, filled but for 2 KiB, and a function that frees the space."""
    folder, filler = tmp_path / "disk", tmp_path / "disk" / "filler"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("needs to mount a small file system")
    try:
        yield folder, filler
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_run_logger_writes_all_lines_once_a_full_disk_has_space(config, small_disk):
    folder, filler = small_disk
    logger, warnings = run_logger(config, folder, step=0)
    filler.write_bytes(bytes(4096))
    steps, long = range(1, 60), EVENT | {"text": "x" * 1000}
    with suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for step in steps:  # of 80 bytes, in pages of 4 KiB
        logger.log(LINE | {"step": step})
    for step in range(8):
        logger.log_event(long | {"step": step})
    assert len(warnings) == 2
    assert len(read_metrics(folder / "metrics.jsonl", 2)[0]) < len(steps)
    filler.unlink()
    logger.log(LINE | {"step": 60})
    logger.log_event(EVENT | {"step": 60})
    logger.close()
    assert len(warnings) == 2
    assert read_metrics(folder / "metrics.jsonl", 2) == ([LINE | {"step": step} for step in [*steps, 60]], 0)
    assert [event["step"] for event in read_events(folder / "events.jsonl")[0]] == [*range(8), 60]
    assert read_events(folder / "events.jsonl")[1] == 0


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
def test_run_logger_writes_nothing_through_a_link(config, tmp_path, name):
    """The folder of a run, as from an archive, may hold links to files elsewhere."""
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_text("mine")
    (folder / name).symlink_to(other)
    logger, warnings = run_logger(config, folder)
    (folder / name).unlink()
    (folder / name).symlink_to(other)  # also one that is new
    warnings.clear()
    logger.log(LINE)
    logger.log_event(EVENT)
    assert other.read_text() == "mine" and len(warnings) == 1
    (folder / name).unlink()
    logger.close()
    assert read_events(folder / "events.jsonl") == ([EVENT], 0)
    assert read_metrics(folder / "metrics.jsonl", 2)[0][-1] == LINE


def test_run_logger_writes_what_is_missing_when_it_closes(config, tmp_path, monkeypatch):
    logger, warnings = run_logger(config, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loggers, "_append", full)
        patch.setattr(loggers, "atomic_write", full)
        for step in (10, 11):
            logger.log(LINE | {"step": step})
        logger.log_event(EVENT)
    assert len(warnings) == 2
    logger.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", 2)[0]] == [10, 11]
    assert read_events(tmp_path / "events.jsonl") == ([EVENT], 0)


def test_tensorboard_gets_scalars_and_images(config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger, _ = run_logger(config, tmp_path, step=0)
    logger.log(LINE)
    logger.log_images("samples", Image.new("RGB", (4, 2), (255, 0, 0)), 3)
    logger.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("kl_per_group/1")] == [(3, 1.5)]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 4, 2)


# ---------------------------------------------------------------------------------------------- Weights & Biases


@pytest.fixture
def offline(make_config, monkeypatch):
    """A config that asks for Weights & Biases without a network; environment variables do not help."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return make_config(training_parameters={"wandb": "offline"})


def test_wandb_is_off_by_default(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    _, warnings = run_logger(config, tmp_path)
    assert warnings == []


def test_wandb_missing_package_is_one_warning_that_names_the_extra(offline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger, warnings = run_logger(offline, tmp_path)
    logger.log(LINE)
    logger.close()
    assert len(warnings) == 1
    assert "pip install -e '.[wandb]'" in warnings[0]
    assert read_metrics(tmp_path / "metrics.jsonl", 2)[0] == [LINE]


@pytest.mark.slow
def test_wandb_offline_records_scalars_pictures_and_one_id(offline, tmp_path, capfd, request):
    wandb = pytest.importorskip("wandb")
    request.addfinalizer(wandb.teardown)  # its process would stay until the end of all tests
    folder = tmp_path / "small"
    for step in (3, 6):  # the second one continues the run
        logger, warnings = run_logger(offline, folder, step=step)
        logger.log(LINE | {"step": step})
        logger.log_images("samples", Image.new("RGB", (4, 2), (255, 0, 0)), step)
        logger.close()
        assert warnings == []
    assert capfd.readouterr() == ("", "")
    wandb.teardown()  # ends its process, which writes the files
    run_id = (folder / loggers.WANDB_ID_FILE).read_text().encode()
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    for step, file in zip((b"3", b"6"), files, strict=True):
        values = {b"loss": rb"2\.5", b"kl_per_group/1": rb"1\.5", b"step": step}
        patterns = {name: name + rb"[^\d/]{1,9}" + value for name, value in values.items()}
        record = file.read_bytes()  # protocol buffers: names and JSON values are plain text
        for text in (run_id, b"nvae", b"small", b"channel_towers"):
            assert text in record
        for name, pattern in patterns.items():
            assert re.search(pattern, record), name
    assert len(list((folder / "wandb").rglob("*.png"))) == 2


class FakeRun:
    """Keeps what W&B keeps: nothing that is logged at a step below the largest so far."""

    def __init__(self):
        self.kept, self.axes, self.step = [], {}, 0

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values, step=None):
        self.step = self.step + 1 if step is None else step
        if self.step >= max((step for step, _ in self.kept), default=-1):
            self.kept.append((self.step, values))

    def finish(self):
        pass


def test_wandb_keeps_the_steps_after_a_recovery(offline, tmp_path, monkeypatch):
    fake = FakeRun()
    module = SimpleNamespace(Image=lambda image: image.size, Settings=dict, init=lambda **_: fake)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for first in (8, 4):  # the second one goes back to a checkpoint at step 4
        logger, warnings = run_logger(offline, tmp_path, step=first)
        for step in (first + 1, first + 2):
            logger.log(LINE | {"step": step})
            logger.log_images("samples", Image.new("RGB", (4, 2)), step)
        logger.close()
        assert warnings == []
    scalars = [values["step"] for _, values in fake.kept if "loss" in values]
    assert scalars == [values["step"] for _, values in fake.kept if "samples" in values] == [9, 10, 5, 6]
    assert fake.axes["*"] == "step"


def test_wandb_that_fails_is_one_warning(offline, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def fail(**_):
        raise wandb.errors.CommError("no connection")

    monkeypatch.setattr(wandb, "init", fail)
    logger, warnings = run_logger(offline, tmp_path)
    logger.log(LINE)
    logger.close()
    assert len(warnings) == 1
