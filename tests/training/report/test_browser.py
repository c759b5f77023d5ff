"""The page in a real browser: its pictures decode, and its controls work. Skipped where there is no browser."""

import json
import os
import re
import shutil
import subprocess

import pytest

from nvae.training.report.page import write_page
from nvae.training.report.record import find_run

from .conftest import NAME

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Uses the page as a person would, then leaves what it saw in the title, as JSON.
VISIT = """
<script>
addEventListener("load", () => {
  const seen = {errors: window.failures};
  seen.pictures = [...document.images].map(image => image.complete && image.naturalWidth > 0);
  const frames = [...document.querySelectorAll("#film figure")], slider = document.querySelector("#film input");
  const shown = () => frames.flatMap((frame, i) => frame.getClientRects().length ? [i] : []);
  seen.newest = shown();
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  seen.oldest = shown();
  const point = (plot, x, y) => {
    const box = plot.getBoundingClientRect();
    const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height};
    plot.dispatchEvent(new PointerEvent("pointermove", at));
  };
  const charts = document.querySelectorAll(".chart"), chart = charts[0], heat = charts[charts.length - 1];
  const outputs = () => [...chart.querySelectorAll("output")].map(output => output.textContent);
  seen.latest = outputs();
  point(chart.querySelector(".plot"), 0.3, 0.5);
  seen.pointed = outputs();
  point(heat.querySelector(".plot"), 0.7, 0.4);
  seen.heat = heat.querySelector(".at").textContent;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.background = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify(seen);
});
</script>
"""
ERRORS = "<script>window.failures = []; onerror = text => { failures.push(text); };</script>"


@pytest.fixture(scope="module")
def browser():
    """The path of a browser."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is no browser here: none of {', '.join(BROWSERS)}")
    return path


def visit(browser, folder, *options):
    """Open the page of the run, use it, and return what was seen."""
    text = write_page(find_run(NAME)).read_text("utf-8")
    page = folder / "visited.html"
    page.write_text(text.replace("<head>", f"<head>{ERRORS}").replace("</body>", f"{VISIT}</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--disable-background-networking", *options, "--dump-dom", page.as_uri()]
    environment = os.environ | {"HOME": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)
    title = re.search(r"<title>(.*?)</title>", result.stdout, re.DOTALL).group(1)
    return json.loads(title.replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.slow
def test_page_in_a_browser(browser, run_folder, tmp_path):
    seen = visit(browser, tmp_path, "--window-size=1280,900")
    assert seen["errors"] == []
    assert len(seen["pictures"]) == 7 and all(seen["pictures"])  # four frames, three pictures
    assert (seen["newest"], seen["oldest"]) == ([3], [0])
    assert (seen["latest"], seen["pointed"]) == (["2.5", "2.1"], ["2.5", "2.2"])
    assert seen["heat"] == "group 2: 2x2, epoch 4: 0.5 nats"
    assert seen["overflow"] <= 0
    dark = visit(browser, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert dark["overflow"] <= 0  # on a narrow screen, tables scroll within the page
    assert dark["background"] != seen["background"]
