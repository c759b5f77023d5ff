import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from nvae.checkpoint import checkpoint_path
from nvae.system.files import WriteError
from nvae.training.report import page
from nvae.training.report.page import MAX_FRAMES, render_page, write_page
from nvae.training.report.record import find_run

from .conftest import NAME

VOID = {"meta", "img", "input", "br", "hr", "link"}
SECTIONS = {"figures", "samples", "curves", "kl", "pictures", "events", "commands", "numbers", "config"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """All elements of a page with their attributes, and its text; refuses elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **attributes):
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def test_page_has_all_parts(run_folder):
    parsed = Page(write_page(find_run(NAME)).read_text("utf-8"))
    assert {attributes["id"] for _, attributes in parsed.elements if attributes.get("id") in SECTIONS} == SECTIONS
    charts = [attributes for _, attributes in parsed.elements if attributes.get("class") == "chart"]
    assert len(charts) == 10  # the last one is the heat map
    readouts = [json.loads(chart["data-readout"]) for chart in charts]
    validation = next(curve for curve in readouts[0]["curves"] if curve["name"] == "validation")
    assert validation["values"] == [[1, "2.2"], [2, "2.1"], [3, "2"], [4, "2.1"]]
    assert len(parsed.all("svg")) == 10
    marks = [path for path in parsed.all("path") if "var(--warn)" in path.get("style", "")]
    assert len(marks) == 9  # the recovery, in every chart but the heat map
    assert readouts[-1]["groups"] == find_run(NAME).groups
    (slider,) = parsed.all("input", type="range")
    assert (slider["max"], slider["value"]) == ("3", "3")
    for text in ("step 400", "back to step 200", "channel_towers", "python3 -m nvae train", "-310.25 ± 1.50 nats"):
        assert text in parsed.text


def test_page_refers_to_nothing_outside(run_folder):
    text = render_page(find_run(NAME))
    for tag, attributes in Page(text).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import|https?:|fetch\(|XMLHttp|WebSocket", text)
    (policy,) = [a["content"] for a in Page(text).all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


@pytest.mark.slow
def test_page_escapes_everything_from_files(run_folder, make_config):
    events = [{"step": 1, "epoch": 1.0, "kind": EVIL, "text": EVIL}]
    (run_folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    lines = [json.loads(line) | {EVIL: 1.0} for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = find_run(NAME)
    record.name, record.problems, record.groups = EVIL, [EVIL], [EVIL] * 4
    record.evaluation.part = EVIL
    record.config = make_config(dataset={"name": "folder", "path": EVIL})
    parsed, plain = Page(render_page(record)), Page(render_page(find_run(NAME)))
    assert len(parsed.all("script")) == len(plain.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in parsed.elements)
    for tag in ("h1", "td", "th", "li", "title"):
        assert len(parsed.all(tag)) >= 1
    assert parsed.text.count(EVIL) >= 6  # as text: title, heading, problem, event, numbers, group, evaluation


@pytest.mark.slow
def test_page_of_a_name_that_is_not_utf8(run_folder, tmp_path):
    record = find_run(NAME)
    record.problems = ["\udcff"]
    assert b"\\udcff" in write_page(record, tmp_path / "page.html").read_bytes()


@pytest.mark.slow
def test_page_limits_frames_and_their_size(run_folder):
    for step in range(500, 3500, 100):
        Image.effect_noise((900, 900), 90).save(run_folder / "samples" / f"step_{step:08d}.png", compress_level=0)
    parsed = Page(render_page(find_run(NAME)))
    frames = [image for image in parsed.all("img") if image["alt"].startswith("samples, step")]
    assert len(frames) == MAX_FRAMES
    assert (frames[0]["alt"], frames[-1]["alt"]) == ("samples, step 100", "samples, step 3,400")
    assert max(int(frame["width"]) for frame in frames) <= 384
    assert sum(len(frame["src"]) for frame in frames) < 4_000_000


def test_page_without_pictures_and_events(run_folder):
    for path in run_folder.rglob("*.png"):
        path.unlink()
    (run_folder / "events.jsonl").unlink()
    (run_folder / "evaluation.json").unlink()
    checkpoint_path(NAME).unlink()
    found = {attributes.get("id") for _, attributes in Page(render_page(find_run(NAME))).elements}
    assert found & SECTIONS == {"figures", "curves", "kl", "commands", "numbers", "config"}


@pytest.mark.slow
def test_page_is_written_whole_or_not_at_all(run_folder, monkeypatch):
    path = write_page(find_run(NAME))
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", fail)
    with pytest.raises(WriteError):
        write_page(find_run(NAME))
    assert path.read_bytes() == before
    assert sorted(p.name for p in run_folder.glob("*report*")) == [page.PAGE_FILE]
