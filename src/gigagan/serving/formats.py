"""The formats of pictures that may come in."""

UPLOADS = ("PNG", "JPEG", "WEBP", "TIFF")
"""Pillow's names; its other decoders are never shown a stranger's bytes. Its JPEG reads some cameras' MPO as well."""
