"""The Very Deep VAE family: config and network."""
