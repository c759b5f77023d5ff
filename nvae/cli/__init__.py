"""The commands of python3 -m nvae, one per file: arguments, what they do, what they say."""
