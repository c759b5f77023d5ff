"""Images from a trained model: samples, picks, explorations, ways between images. Knows nothing of training.

Everything that the tools do, as functions that take a model in eval mode and return tensors.
"""

from nvae.sampling.batch_norm import StatisticsCache, readjusted
from nvae.sampling.cherry_picking import load_selection, render
from nvae.sampling.exploration import explore, explore_positions, jammed, mean_change, sweep, viewpoint
from nvae.sampling.interpolation import interpolate, mix, slerp, walk
from nvae.sampling.samples import decode, encode, noise_of, per_group, reconstruct, sample

__all__ = [
    "StatisticsCache",
    "decode",
    "encode",
    "explore",
    "explore_positions",
    "interpolate",
    "jammed",
    "load_selection",
    "mean_change",
    "mix",
    "noise_of",
    "per_group",
    "readjusted",
    "reconstruct",
    "render",
    "sample",
    "slerp",
    "sweep",
    "viewpoint",
    "walk",
]
