"""Measure how good a model is."""
