"""The operator's say in what is drawn. A refusal is an error that says so, never a black picture."""

from importlib import import_module
from typing import Protocol

from PIL import Image

from gigagan.errors import ConfigError


class SafetyChecker(Protocol):
    """Called in threads, several at a time; both methods return the reason of a refusal, or nothing."""

    def check_prompt(self, prompt: str) -> str:
        """Before anything is drawn."""

    def check_picture(self, image: Image.Image) -> str:
        """Before the picture is sent."""


def load_checker(place: str) -> SafetyChecker:
    """The object that MODULE:NAME names; a class is called for one."""
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
        checker: SafetyChecker = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--safety {place}: {error}; expected MODULE:NAME of something that can be imported"
        ) from None
    for method in ("check_prompt", "check_picture"):
        if not callable(getattr(checker, method, None)):
            raise ConfigError(f"--safety {place}: has no {method}; see gigagan.serving.safety.SafetyChecker")
    return checker
