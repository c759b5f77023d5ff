"""Sample from a model: python3 sample.py quickstart 0.7 20"""

from nvae.cli.main import script

if __name__ == "__main__":
    script("sample")
