"""What the tests of edit and video ask for, and how they look at what came."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gigagan.pipeline import Pipeline

A, B, C, D = "a red apple", "an icon of a rocket", "x", "y"
Run = Callable[..., list[str]]
CapSys = pytest.CaptureFixture[str]


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def plain(pipe: Pipeline, prompt: str, seed: int, psi: float = 0.7) -> np.ndarray:
    return np.asarray(pipe(prompt, seeds=seed, truncation_psi=psi).images[0])


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
