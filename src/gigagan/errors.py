"""Every error a user can cause, as one tree.

    GigaGANError
      ConfigError        a knob is unknown, out of range or contradicts another
      DataError          a file, shard or caption can't be used
      Outage             where data lies doesn't answer, which says nothing of the data
      CheckpointError    a model or training state is missing, damaged or of another shape
      PromptError        a prompt can't be drawn
      MissingExtra       an optional package is needed: says the pip line

Each message is one line: what came, what was expected, what to do. The command line prints it and exits with 2.
"""


class GigaGANError(Exception):
    """A mistake in what the user gave, not in the program."""


class ConfigError(GigaGANError):
    """A knob is unknown, out of range or contradicts another."""


class DataError(GigaGANError):
    """A file, shard or caption can't be used."""


class Outage(GigaGANError):
    """Where data lies doesn't answer, which says nothing of the data."""


class CheckpointError(GigaGANError):
    """A model or training state is missing, damaged or of another shape."""


class PromptError(GigaGANError):
    """A prompt can't be drawn."""


class MissingExtra(GigaGANError):
    """An optional package is needed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} isn't installed; run: pip install 'open-gigagan[{extra}]'")
