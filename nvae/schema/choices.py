"""The words and the limit that the library and the commands share. Imports no torch: `--help` shows them."""

from __future__ import annotations

from typing import Literal

Pixels = Literal["mean", "most_likely", "sample"]  # which image of p(x | z) to show
Part = Literal["training", "validation", "test"]  # of a data set
Estimator = Literal["importance_weighted", "analytic_kl"]  # of log p(x)
Metric = Literal["fid", "kid", "precision-recall", "ppl", "copies"]  # of the quality of samples
ExtractorName = Literal["self", "mobilenet", "inception", "vgg16", "clip", "dinov2"]
AnimationFormat = Literal["webp", "gif", "mp4"]
Inline = Literal["kitty", "iterm2", "sixel", "none"]  # how a terminal shows pictures

MAX_ITERATIONS = 100_000  # of the batch-norm recalibration
