"""Training: state, steps, loop, statistics."""
