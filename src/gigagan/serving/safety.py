"""The operator's say in what is drawn. A refusal is an error that says so, never a black picture."""

from typing import Protocol

from PIL import Image


class SafetyChecker(Protocol):
    """Called in threads, several at a time; both methods return the reason of a refusal, or nothing."""

    def check_prompt(self, prompt: str) -> str:
        """Before anything is drawn."""

    def check_picture(self, image: Image.Image) -> str:
        """Before the picture is sent."""
