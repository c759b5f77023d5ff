"""Pick the best samples: python3 cherry.py quickstart 0.7 20"""

from nvae.__main__ import script

if __name__ == "__main__":
    script("cherry")
