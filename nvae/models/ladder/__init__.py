"""The Ladder VAE family: config and network. The smallest family, to copy for a new one."""
