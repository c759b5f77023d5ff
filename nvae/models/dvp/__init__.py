"""The DVP-VAE family: a Ladder VAE below a context, whose prior is a diffusion model. Config, network, context."""
