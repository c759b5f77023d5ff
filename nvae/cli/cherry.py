"""Look at batches of samples, pick the best ones, and put them in order.

Every pick is saved at once in a .json file; the result is drawn beside it as .png.
"""

from __future__ import annotations

import argparse
import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from nvae.cli.arguments import (
    ITERATIONS,
    Parser,
    add_model,
    add_result,
    add_sampling,
    chosen_seed,
    factors,
    first_given,
    integer,
    iterations,
    print_warnings,
    program,
)
from nvae.cli.errors import INTERRUPTED
from nvae.cli.models import find_model, open_model, with_context_temperature
from nvae.cli.progress import progress_bar
from nvae.schema.choices import Inline
from nvae.system.errors import UserError

if TYPE_CHECKING:
    from nvae.tools.picking.session import PickingSession


def add_arguments(parser: Parser) -> None:
    add_model(parser, optional=True)
    add_sampling(parser)
    parser.option("--batch N", integer(1, 100), "samples per batch", default=9)
    parser.option("--winners N", integer(1, 100), "samples to pick", default=9)
    parser.option(
        "--scale-noise S[,S...]",
        factors,
        "factor on the noise, or one per scale, the coarsest first, or per latent group",
        "1",
    )
    parser.option(
        "--inline",
        str,
        "protocol that shows pictures in the terminal, when picking at the prompt",
        "detected",
        choices=get_args(Inline),
    )
    parser.option(
        "--redo FILE",
        Path,
        "draw an earlier result again, from its .json or .png file; with MODEL, from that model",
        "pick",
    )
    parser.option(
        "--temperature T[,T...]",
        factors,
        "with --redo: another temperature",
        "the recorded one",
        dest="redo_temperature",
    )
    parser.option(
        "--iterations N",
        iterations,
        "with --redo: another number of recalibration passes",
        "the recorded one",
        dest="redo_iterations",
    )
    add_result(parser, "the first sample; the others have the following seeds", show_seeds=True)


def run(options: argparse.Namespace) -> int:
    _check(options)
    return _redo(options) if options.redo else _pick(options)


def _check(options: argparse.Namespace) -> None:
    if options.redo is None:
        if options.temperature is None:
            raise UserError("give MODEL and TEMPERATURE, such as quickstart 0.7, or --redo FILE.")
        if options.redo_temperature or options.redo_iterations is not None:
            raise UserError("--temperature and --iterations need --redo: give them as TEMPERATURE and ITERATIONS.")
    elif options.temperature is not None or options.seed is not None:
        raise UserError("--redo uses the recorded seeds: leave out TEMPERATURE and --seed, or use --temperature.")


def _redo(options: argparse.Namespace) -> int:
    from nvae.checkpoint import load_model
    from nvae.cli.result import check_out
    from nvae.system.devices import choose_device
    from nvae.tools.picking.selection import load_selection, render, reserve, save_result

    check_out(options)
    device = choose_device(options.device)
    open_file = functools.cache(lambda path: load_model(path, device))
    selection = load_selection(options.redo).changed(
        model=find_model(options.model) if options.model else None,
        temperature=options.redo_temperature,
        iterations=options.redo_iterations,
        pixels=options.pixels,
        scale_noise=options.scale_noise,
    )
    if options.context_temperature is not None:
        selection = selection.with_context_temperature(options.context_temperature, open_file)
    images, drawn, warnings = render(selection, open_file, progress_bar)
    record = reserve(options.out, f"{options.redo.stem}_redo")
    _print_result(save_result(images, drawn, record, options.show_seeds), warnings)
    return 0


def _pick(options: argparse.Namespace) -> int:
    from nvae.inference.sampling import open_samplers
    from nvae.system.signals import hangups
    from nvae.tools.picking.game import Picking
    from nvae.tools.picking.selection import Selection
    from nvae.tools.picking.session import PickingSession

    picking = Picking(options.batch, options.winners, chosen_seed(options))
    settings = Selection(pixels=options.pixels or "mean", scale_noise=options.scale_noise or [1.0])
    model = open_model(options)
    temperature = with_context_temperature(options, model, options.temperature)
    passes = first_given(options.iterations, ITERATIONS)
    (sampler,) = open_samplers(model, options.model, [temperature], passes, progress_bar)
    session = PickingSession(sampler, options.model, picking, settings, options.out)
    preview = session.record.with_name(f"batch_of_{session.record.stem}.png")
    with hangups(interrupt=False):  # a signal ends the picking; the result is drawn all the same
        try:
            finished = session.run(lambda warnings: _play(session, options, preview, warnings))
        finally:
            preview.unlink(missing_ok=True)
        result = session.save_result(options.show_seeds)
    if result is None:
        print("nothing was picked, nothing is saved.")
    else:
        _print_result(*result)
    return 0 if finished else INTERRUPTED


def _play(session: PickingSession, options: argparse.Namespace, preview: Path, warnings: list[str]) -> None:
    from nvae.tools.display import can_open_window, inline_protocol
    from nvae.tools.picking.views import PickingWindow, pick_at_prompt

    print_warnings(warnings)
    if not options.no_window and can_open_window():
        PickingWindow(session.picking, session.draw, session.save, session.record.stem).run()
        return
    protocol = options.inline or inline_protocol()
    pick_at_prompt(session.picking, session.draw, session.save, preview, protocol)


def _print_result(picture: Path, warnings: list[str]) -> None:
    print_warnings(warnings)
    print(f"{picture}; to draw it again: {program()} --redo {shlex.quote(str(picture.with_suffix('.json')))}")
