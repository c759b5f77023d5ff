"""What each latent group does: python3 latent_space_exploration.py saved_weights/quickstart.checkpoint 0.7 20"""

from pathlib import Path
from typing import get_args

from nvae.arguments import format_values
from nvae.checkpoint import load_model_and_metadata, plain_name
from nvae.cli import command_line
from nvae.cli.command_line import number, positive, seconds, up_to
from nvae.data.image_files import read_image_files
from nvae.devices import choose_device
from nvae.errors import UserError
from nvae.inference.exploration import base_point, explore, explore_positions, mean_change, sweep
from nvae.inference.reconstruction import encode
from nvae.inference.sampling import Sampler, seed_noise
from nvae.inference.statistics_cache import StatisticsCache
from nvae.tools.animation import FRAMES_PER_SECOND, Format, save_animation
from nvae.tools.display import show
from nvae.tools.exploration_pictures import change_table, group_name, overview, positions_picture
from nvae.tools.grids import save_result


def arguments():
    parser = command_line.Parser(description="Jam one latent group at a time, keep all other noise, see what changes.")
    command_line.add_model(parser)
    parser.add_argument("--jams", type=up_to(100), metavar="K", help="draws per group, in a row each (1)")
    parser.add_argument("--group", type=positive, metavar="G", help="only this group, 1 is the top one: its positions")
    parser.add_argument("--difference", action="store_true", help="beside each picture, where it changed")
    parser.add_argument("--strength", type=number, default=1.0, metavar="S", help="factor on the new noise (1)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="explore around this picture, not around a sample")
    parser.add_argument(
        "--animate",
        choices=get_args(Format),
        nargs="?",
        const="gif",
        help="sweep --group, or the strongest one",
    )
    parser.add_argument("--seconds", type=seconds, metavar="S", help="of the animation (4)")
    command_line.add_seed_device_out(parser, "the sample and of the jams")
    options = parser.parse_intermixed_args()
    if options.difference and (options.group or options.animate):
        parser.error("--difference is of the overview: leave out --group and --animate")
    if options.animate and options.jams or options.seconds is not None and not options.animate:
        parser.error("--animate has a length, --seconds, and goes without --jams")
    return options


def main() -> None:
    options = arguments()
    model, file_metadata = load_model_and_metadata(options.model, choose_device(options.device))
    if options.group is not None and options.group > len(model.groups):
        raise UserError(
            f"--group is {options.group}; the model has {len(model.groups)} latent groups, 1 is the top one."
        )
    cache, seed = StatisticsCache(model, options.model), command_line.chosen_seed(options)
    temperature, strength = options.temperature, options.strength
    about = {"model": options.model, "weights": cache.weights, "temperature": options.temperature, "seed": seed}
    about |= {"strength": strength, "image": str(options.image or "")}
    if options.image:  # a picture's latents have the statistics of training, and its noise is that of temperature 1
        images, notices = read_image_files([options.image], model.config, model.device)
        noise, iterations = encode(model, images), 0
        temperature, strength = 1.0, [strength * t for t in temperature]
    else:
        noise, iterations, notices = seed_noise(model, [seed]), options.iterations, []
    about |= {"iterations": iterations}
    sampler = Sampler(model, temperature, iterations, cache, progress=command_line.progress_bar)
    command_line.say([*notices, *sampler.warnings])
    saved, picture = draw(options, sampler, base_point(sampler, noise), strength, seed, about, file_metadata)
    print(saved)
    print(command_line.same_again(seed))
    if picture is not None:
        show(picture, saved.name)


def draw(options, sampler, view, strength, seed, about, file_metadata):
    """What was asked for, saved: its path, and the picture if it is no animation."""
    model = sampler.model
    start = f"seed{seed}" if options.image is None else f"{options.image.stem}_seed{seed}"
    name = f"exploration_{plain_name(options.model)}_temperature{format_values(options.temperature, '-')}_{start}"
    group = options.group and options.group - 1
    jams = options.jams or 1
    if group is None:
        found = explore(sampler, view, jams, strength, seed)
        print(change_table(model, view, found, file_metadata.get("kl_per_group")))
    if options.animate:
        if group is None:
            group = max(range(len(found)), key=lambda index: mean_change(found[index], view.image))
        frames = max(2, round((options.seconds or 4) * FRAMES_PER_SECOND))
        about |= {"group": group + 1, "frames": frames}
        name += f"_group{group + 1}"
        images = sweep(sampler, view, group, frames, strength, seed)
        return save_animation(images, frames, options.out, name, options.animate, about), None
    if group is not None:
        jams = options.jams or 4
        found = explore_positions(sampler, view, group, jams, strength, seed)
        print(f"group {group_name(model, group)}: the mean change of a position is {found.influence.mean():.4f}")
        picture, name = positions_picture(view, found, model.padding), f"{name}_group{group + 1}"
    else:
        picture = overview(model, view, found, options.difference)
    about |= {"jams": jams, "group": options.group or 0, "difference": options.difference}
    return save_result(picture, options.out, name, about), picture


if __name__ == "__main__":
    command_line.run(main)
