"""Pick the best samples: python3 cherry.py saved_weights/quickstart.checkpoint 0.7 20"""

import shlex
import sys
from pathlib import Path
from typing import get_args

from nvae.checkpoint import load_model
from nvae.cli import command_line
from nvae.cli.command_line import natural, numbers, up_to
from nvae.devices import choose_device
from nvae.inference.sampling import Pixels
from nvae.signals import hangups
from nvae.tools.display import PROTOCOLS, can_open_window, inline_protocol
from nvae.tools.picking.game import Picking
from nvae.tools.picking.selection import Selection, load_selection, picture_of, record_of, redo
from nvae.tools.picking.session import PickingSession
from nvae.tools.picking.views import PickingWindow, pick_at_prompt


def arguments():
    parser = command_line.Parser(description="Look at batches of samples, pick the best, put them in order.")
    command_line.add_model(parser, optional=("model", "temperature"))
    parser.add_argument("--batch", type=up_to(100), default=9, metavar="N", help="samples at once (9)")
    parser.add_argument("--winners", type=up_to(100), default=9, metavar="N", help="how many to pick (9)")
    parser.add_argument("--pixels", choices=get_args(Pixels), help="what is shown of p(x | z) (mean)")
    parser.add_argument("--scale-noise", type=numbers, metavar="S[,S...]", help="factor on the noise, or one per scale")
    parser.add_argument("--no-window", action="store_true", help="pick at the prompt even where there is a display")
    parser.add_argument("--inline", choices=(*PROTOCOLS, "none"), help="how the terminal shows pictures")
    parser.add_argument("--redo", type=Path, metavar="FILE.json", help="draw a result again, of MODEL if given")
    parser.add_argument("--temperature", dest="other", type=numbers, metavar="T[,T...]", help="of --redo: another one")
    parser.add_argument("--iterations", dest="passes", type=natural, metavar="N", help="of --redo: others")
    command_line.add_seed_device_out(parser, "the first sample; the others have the next ones")
    options = parser.parse_intermixed_args()
    if options.redo is None and options.temperature is None:
        parser.error("give a MODEL and a TEMPERATURE, such as 0.7, or --redo FILE.json")
    if options.redo is None and (options.other or options.passes is not None):
        parser.error("--temperature and --iterations are of --redo: give them as TEMPERATURE and ITERATIONS")
    if options.redo is not None and (options.temperature is not None or options.seed is not None):
        parser.error("--redo has its seeds, and takes another temperature as --temperature")
    return options


def main() -> int:
    options = arguments()
    device = choose_device(options.device)
    if options.redo:
        changes = (options.model, options.other, options.passes, options.pixels, options.scale_noise)
        selection = load_selection(options.redo).changed(*changes)
        name = f"{options.redo.name.removesuffix('.json')}_redo"
        return told(*redo(selection, options.out, name, lambda path: load_model(path, device)))

    picking = Picking(options.batch, options.winners, command_line.chosen_seed(options))
    shown = Selection(pixels=options.pixels or "mean", scale_noise=options.scale_noise or [1.0])
    model = load_model(options.model, device)
    session = PickingSession(model, options.model, options.temperature, options.iterations, picking, shown, options.out)
    batch = session.record.with_name(f"batch_of_{picture_of(session.record).name}")

    def front_end(warnings):
        command_line.say(warnings)
        if can_open_window() and not options.no_window:
            return PickingWindow(picking, session.draw, session.keep, session.record.stem).run()
        protocol = inline_protocol() if options.inline is None else options.inline
        return pick_at_prompt(picking, session.draw, session.keep, batch, protocol)

    with hangups(interrupt=False):  # one of them ends the picking; the result is drawn all the same
        try:
            finished = session.run(front_end)
        finally:
            batch.unlink(missing_ok=True)
        saved = session.save()
    if saved is None:
        print("nothing was picked, nothing is saved.")
    else:
        told(*saved)
    return 0 if finished else command_line.INTERRUPTED


def told(saved, notices) -> int:
    """Say what was saved."""
    for notice in notices:
        print(notice)
    print(f"{saved}; the same again: python3 {shlex.quote(sys.argv[0])} --redo {shlex.quote(str(record_of(saved)))}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
