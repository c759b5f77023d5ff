"""One file per kind of data set: from the keys of a config to images."""
