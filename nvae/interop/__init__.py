"""Other projects' weights: their names, and where they go in our models."""
