"""Measures of a model: features, readers trained on real pictures, distances. Sees pictures, never a model."""
