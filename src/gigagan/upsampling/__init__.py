"""Pictures to larger ones: the network in parts (enlarger), photographs in and out (photo, png), folders (files)."""
