"""Sample from a model: python3 sample.py quickstart 0.7 20"""

from nvae.__main__ import script

if __name__ == "__main__":
    script("sample")
