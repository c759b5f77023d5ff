"""The commands, one per file: arguments, messages and the hints that name command-line flags. Imports no torch."""
