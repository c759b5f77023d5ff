"""The NVAE family: config, network, cells, convolutions, flows, regularization."""
