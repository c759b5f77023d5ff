"""Pick the best samples: python3 cherry.py quickstart 0.7 20"""

from nvae.cli.main import script

if __name__ == "__main__":
    script("cherry")
