"""Write report.html: what a run did, as one file without references to other files or the network."""

from __future__ import annotations

import base64
import io
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nvae.config import config_to_yaml
from nvae.data.pictures.image_files import open_image
from nvae.system.files import atomic_write
from nvae.training.report import facts
from nvae.training.report.charts import curves_of, drawing, kl_over_time
from nvae.training.report.record import CONTINUED, EARLY_STOPPING, FINISHED, STARTED, STOPPED, RunRecord

PAGE_FILE = "report.html"
MAX_FRAMES = 24  # of the samples over time
FRAME_SIDE, PICTURE_SIDE = 384, 1000  # largest sides in pixels of embedded pictures
LOSSLESS_SIDE = 160  # up to this side, pictures are embedded without loss
MAX_LINES = 100  # of the table of numbers
MAX_EVENTS = 200
MAX_MARKS = 20
REFRESH_SECONDS = 60  # of the page of a training that runs


class Picture(NamedTuple):
    """An embedded picture: its data URI, its size in pixels, and a caption."""

    src: str
    width: int
    height: int
    caption: str


def write_page(record: RunRecord, path: Path | None = None) -> Path:
    """Write the page of a run, atomically, and return its path (default: runs/NAME/report.html). Raises WriteError."""
    path = record.folder / PAGE_FILE if path is None else path
    page = render_page(record)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def render_page(record: RunRecord) -> str:
    """Return the page of a run as HTML. All texts are escaped by the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    routine = (STARTED, CONTINUED, STOPPED, FINISHED, EARLY_STOPPING)
    marks = [event["epoch"] for event in record.events if event["kind"] not in routine][-MAX_MARKS:]
    heat_map = kl_over_time(record.metrics, record.groups)
    return environment.get_template("page.html").render(
        record=record,
        state_text=facts.state_text(record),
        facts=facts.facts_of(record),
        charts=[drawing(chart) for chart in curves_of(record.metrics, marks).values()],
        marks=marks,
        kl_bars=facts.kl_bars(record),
        heat_map=None if heat_map is None else drawing(heat_map),
        frames=_frames(record.folder / "samples"),
        samples=_picture(record.folder / "samples.png", "", PICTURE_SIDE),
        reconstructions=_picture(record.folder / "reconstructions.png", "", PICTURE_SIDE),
        data=_picture(record.folder / "data.png", "", PICTURE_SIDE),
        events=record.events[-MAX_EVENTS:][::-1],
        commands=facts.commands(record),
        config=config_to_yaml(record.config) if record.config else "",
        table=_table(record),
        time=utc_time(),
        refresh=REFRESH_SECONDS,
    )


def utc_time() -> str:
    """Return the time, such as "2026-07-01 09:30 UTC"."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _table(record: RunRecord) -> tuple[list[str], list[list[str]]]:
    """Return the names and the last rows of all metrics that are numbers, the newest first."""
    lines = record.metrics[-MAX_LINES:][::-1]
    names = list(dict.fromkeys(key for line in lines for key, value in line.items() if not isinstance(value, list)))
    rows = [[f"{line[name]:.6g}" if name in line else "" for name in names] for line in lines]
    return names, rows


def _frames(folder: Path) -> list[Picture]:
    """Return pictures of the samples at several steps, the oldest and the newest among them."""
    paths = sorted(folder.glob("step_*.png"))
    kept = sorted({round(i) for i in np.linspace(0, len(paths) - 1, min(len(paths), MAX_FRAMES))})
    steps = [re.sub(r"\D", "", paths[i].stem) for i in kept]
    pictures = [_picture(paths[i], f"step {int(s or 0):,}", FRAME_SIDE) for i, s in zip(kept, steps, strict=True)]
    return [picture for picture in pictures if picture is not None]


def _picture(path: Path, caption: str, side: int) -> Picture | None:
    """Return a picture file at a size of at most `side`; None if it is missing or damaged."""
    if not path.is_file():
        return None
    file = io.BytesIO()
    try:
        with open_image(path) as opened:
            image: Any = opened.convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(file, "webp", quality=85, lossless=max(image.size) <= LOSSLESS_SIDE)
    except Exception:  # Pillow's decoders raise almost anything for a damaged file
        return None
    return Picture(
        f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", image.width, image.height, caption
    )
