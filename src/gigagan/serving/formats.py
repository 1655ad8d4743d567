"""The formats of pictures that may come in."""

UPLOADS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF")
"""Pillow's names. MPO: what some cameras make of a JPEG. Its other decoders are never shown a stranger's bytes."""
