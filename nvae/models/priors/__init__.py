"""Priors of the first latent group that a family can choose with the key `top_prior`, the diffusion prior among them."""
