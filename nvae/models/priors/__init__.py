"""The priors of a first latent group that the key `top_prior` names, the diffusion prior among them."""
