"""Train a model, or continue its training: python3 train.py quickstart"""

from nvae.cli.main import script

if __name__ == "__main__":
    script("train")
