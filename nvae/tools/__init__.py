"""User interfaces: pictures, windows, animations, picking."""
