import json
import os
import shutil
from pathlib import Path

import pytest

from nvae.checkpoint import checkpoint_path, load, model_path, save
from nvae.system.errors import UserError
from nvae.system.files import previous_path
from nvae.system.locks import run_lock
from nvae.training.report.facts import commands, continuation, facts_of, kl_bars
from nvae.training.report.page import render_page
from nvae.training.report.record import RunRecord, find_run
from nvae.training.report.text import run_text

from .conftest import ESTIMATE, EVALUATION, EVENTS, NAME


def values(record):
    return {fact.name: fact.value for fact in facts_of(record)}


def test_record_has_position_validations_kl_events_and_time(run_folder):
    record = find_run(NAME)
    assert record.problems == []
    assert record.position == (400, 4.0, 1600, 2)
    assert (record.best.epoch, record.best.elbo, record.best.bits_per_dimension) == (3.0, -300.0, 2.0)
    assert record.validations[-1].elbo == -310.0
    assert (record.active_groups, len(record.groups)) == (3, 4)
    assert record.training_seconds == pytest.approx(1600 / 20)
    assert record.events == EVENTS  # the event of the checkpoint is there once
    assert (record.state, record.epochs) == ("stopped", 5)
    assert values(record)["steps"] == "400"


def test_run_is_found_by_name_folder_checkpoint_and_model(run_folder, make_model):
    save(make_model(), model_path(NAME), metadata={"kl_per_group": [1.0, 2.0, 3.0, 4.0]})
    names = (NAME, f"runs/{NAME}", f"runs/{NAME}/", str(run_folder), checkpoint_path(NAME), model_path(NAME))
    records = [find_run(str(name)) for name in names]
    assert {record.name for record in records} == {NAME}
    assert all(record.metrics == records[0].metrics for record in records)
    assert records[-1].kl_per_group == [1.0, 2.0, 3.0, 4.0]  # of the model file itself
    assert find_run("another") is None
    assert find_run("x" * 5000) is None
    assert find_run("\0") is None


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["checkpoint", "metrics.jsonl", "config.yaml", "events.jsonl", "everything else"])
def test_what_is_left_is_shown(run_folder, missing):
    if missing == "checkpoint":
        checkpoint_path(NAME).unlink()
    elif missing == "everything else":
        shutil.rmtree(run_folder)
    else:
        (run_folder / missing).unlink()
    record = find_run(NAME)
    assert record.position.step == 400
    assert record.best.epoch == 3.0
    assert record.active_groups == 3
    assert record.events[-1] in EVENTS
    assert len(record.problems) == (0 if missing in ("config.yaml", "events.jsonl") else 1)
    assert run_text(record) and render_page(record)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_checkpoint_saved_before_is_read_without_a_whole_newest_one(run_folder, damage):
    newest = checkpoint_path(NAME)
    shutil.copy(newest, previous_path(newest))
    newest.unlink() if damage == "missing" else newest.write_bytes(newest.read_bytes()[:1000])
    shutil.rmtree(run_folder)
    record = find_run(NAME)
    assert record.position.step == 400
    assert len(record.problems) == 3  # the newest checkpoint, the one that is read, the folder
    assert str(newest) in record.problems[0] and str(previous_path(newest)) in record.problems[1]


def test_metrics_alone_are_enough(run_folder):
    checkpoint_path(NAME).unlink()
    (run_folder / "config.yaml").unlink()
    record = find_run(NAME)
    assert record.config is None
    assert record.position == (400, 4.0, 1600, 2)
    assert record.groups == ["1", "2", "3", "4"]
    assert continuation(record) is None
    assert run_text(record) and render_page(record)


def test_nothing_is_an_error(run_folder):
    checkpoint_path(NAME).write_bytes(b"PK damaged")
    shutil.rmtree(run_folder)
    for what in (NAME, str(checkpoint_path(NAME))):
        with pytest.raises(UserError):
            find_run(what)
    (run_folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        find_run("runs/empty")


DAMAGE = [b"", b"\x00\xff\xfe", b"null\n", b"[1]\n", b"{" * 100_000, b'{"step": 1e400, "epoch": 1}\n', b'{"step": 1\n']


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: str(damage[:20]))
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "events.jsonl", "config.yaml", "evaluation.json", "samples.png", "checkpoint"]
)
def test_damaged_file_is_left_out(run_folder, name, damage):
    path = checkpoint_path(NAME) if name == "checkpoint" else run_folder / name
    path.write_bytes(damage)
    record = find_run(NAME)
    assert record.position.step == 400
    assert run_text(record) and render_page(record)
    unused = name in ("samples.png", "config.yaml")  # a picture is left out of the page; the checkpoint has the config
    assert len(record.problems) == (0 if unused else 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["progress", "history", "metadata"])
@pytest.mark.parametrize(
    "value",
    [{}, {"step": -1}, {"validations": [(1.0,), ("a", "b")]}, {"validations": [(10**400, 1)]}, {"events": 3}],
    ids=lambda value: str(value)[:40],
)
def test_damaged_part_of_a_checkpoint_is_left_out(run_folder, make_model, part, value):
    content = load(checkpoint_path(NAME))
    training, metadata = content["training"], content["metadata"]
    training, metadata = (training, value) if part == "metadata" else (training | {part: value}, metadata)
    save(make_model(), checkpoint_path(NAME), training, metadata)
    record = find_run(NAME)
    assert record.position.step == 400
    assert run_text(record) and render_page(record)


@pytest.mark.slow
def test_extreme_numbers_are_drawn(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    keys = [key for key, value in json.loads(lines[0]).items() if not isinstance(value, list)]
    for number in (1e300, 1e200, -1e200, 0, 10**199, -3):
        damaged = [json.dumps(json.loads(line) | {key: number}) for key in keys for line in lines[:2]]
        (run_folder / "metrics.jsonl").write_text("\n".join([*damaged, *lines[2:]]))
        record = find_run(NAME)
        assert run_text(record) and render_page(record)


def test_command_continues_the_run_by_its_name(run_folder):
    assert continuation(find_run(NAME)).line == f"python3 -m nvae train {NAME}"
    configs = run_folder.parent.parent / "model_configs"
    configs.mkdir()
    text = (run_folder / "config.yaml").read_text()
    (configs / f"{NAME}.yaml").write_text(text)
    assert continuation(find_run(NAME)).line == f"python3 -m nvae train {NAME}"


def test_command_names_the_config_of_the_run_where_its_name_does_not_find_that(run_folder):
    line = f"python3 -m nvae train runs/{NAME}/config.yaml --name {NAME}"
    (checkpoint := checkpoint_path(NAME)).rename(aside := checkpoint.with_name("aside"))
    assert continuation(find_run(NAME)).line == line
    aside.rename(checkpoint)
    configs = run_folder.parent.parent / "model_configs"
    configs.mkdir()
    text = (run_folder / "config.yaml").read_text()
    (configs / f"{NAME}.yaml").write_text(text.replace("seed: 0", "seed: 1"))  # another config of this name
    assert continuation(find_run(NAME)).line == line


def test_command_of_a_run_in_another_root_works_here(run_folder, monkeypatch, tmp_path):
    (checkpoint := checkpoint_path(NAME)).rename(checkpoint.with_name("aside"))
    root = run_folder.parent.parent
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NVAE_ROOT", str(root))
    path, last = run_folder / "config.yaml", run_text(find_run(NAME)).splitlines()[-1]
    assert last.strip() == f"python3 -m nvae train {path} --name {NAME} --root {root}"


@pytest.mark.parametrize(
    ("kind", "option"),
    [("finished", "--epochs 10"), ("early stopping", "--set training_parameters.early_stopping_patience=null")],
)
def test_command_of_a_finished_run_trains_longer(run_folder, kind, option):
    with open(run_folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"step": 400, "epoch": 4.0, "kind": kind, "text": "the end"}) + "\n")
    record = find_run(NAME)
    assert record.state == "finished"
    assert continuation(record).line == f"python3 -m nvae train {NAME} {option}"


def test_commands_quote_the_name():
    assert all("'a; b'" in command.line for command in commands(RunRecord("a; b", Path("."))))


def test_text_has_bars_events_and_no_control_characters(run_folder):
    with open(run_folder / "events.jsonl", "a") as file:
        event = {"step": 400, "epoch": 4.0, "kind": "a\x1b[2Jb", "text": "c\nd\u202e"}
        file.write(json.dumps(event) + "\n")
    text = run_text(find_run(NAME))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\\x1b[2J" in text
    bars = [line.split() for line in text.splitlines() if line.endswith("#")]
    assert [len(bar[-1]) for bar in bars] == [4, 40, 16, 3, 40]  # the first group has no bar
    assert list(kl_bars(find_run(NAME))["level"].values()) == pytest.approx([0.501, 7.0])


def test_text_names_the_process_that_trains_the_run(run_folder):
    record = find_run(NAME)
    before = run_text(record)
    with run_lock(record.lock, NAME, print):
        assert str(os.getpid()) in run_text(find_run(NAME))
    assert run_text(find_run(NAME)) == before


def test_time_left_is_that_of_the_last_lines(run_folder):
    record = find_run(NAME)
    assert (record.state, record.position.epoch, record.epochs) == ("stopped", 4, 5)
    assert record.seconds_left == pytest.approx(400 / 20)  # 400 images an epoch, 20 images a second
    for line in record.metrics[-2:]:
        line["overall_images_per_second"] = 5.0  # with validations and pictures
    assert record.seconds_left == pytest.approx(400 / 10 * (0.5 + 0.5 * 20 / 5) / 2)
    assert record.training_seconds == pytest.approx(800 / 20 + 800 / 5)
    record.position = record.position._replace(epoch=4.5)
    assert record.seconds_left == pytest.approx(400 / 10 * (0.5 + 0.5 * 20 / 5) / 4)
    record.metrics[-1]["images"] = 1e200
    assert record.seconds_left is None or record.seconds_left >= 0
    record.position = record.position._replace(epoch=5.0)
    assert record.state == "finished" and record.seconds_left is None


def test_evaluation_of_an_earlier_version_is_shown(run_folder):
    older = {key: value for key, value in EVALUATION.items() if key not in ("part", "is_bound", "is_normalized")}
    (run_folder / "evaluation.json").write_text(
        json.dumps(older | {"log_likelihood": ESTIMATE | {"standard_error": None}})
    )
    record = find_run(NAME)
    assert record.problems == []
    assert values(record)["evaluation ELBO"] == "-310.25 ± 1.50 nats"
    assert values(record)["evaluation log p(x)"] == "-310.25 nats"
