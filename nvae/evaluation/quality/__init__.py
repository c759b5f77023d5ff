"""Measure the quality of samples: distances between sets of features, path lengths, copies of training images."""
