"""The commands, one per file: arguments, messages, and hints with command-line flags. Imports no torch."""
