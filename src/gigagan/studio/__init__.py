"""The studio: a page for one model, on this machine alone unless told otherwise, without anything from elsewhere."""
