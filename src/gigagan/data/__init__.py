"""Captioned pictures: building sets of them, reading them, drawing batches."""
