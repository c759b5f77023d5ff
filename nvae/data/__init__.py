"""Data sets: a registry by name; every data set becomes uint8 images, in memory or in a memory-mapped file."""
