"""Show what each latent group does: python3 latent_space_exploration.py quickstart 0.7 20"""

from nvae.cli.main import script

if __name__ == "__main__":
    script("explore")
