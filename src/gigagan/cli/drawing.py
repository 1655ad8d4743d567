"""A model drawing what an evaluation asks for, and how long it takes."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gigagan.evaluation.evaluate import Image, Request
    from gigagan.pipeline import Pipeline


class Drawing:
    """The requested pictures, [H, W, 3], a micro-batch at a time; the first few are kept, and on request all."""

    def __init__(
        self, pipe: "Pipeline", requests: "Sequence[Request]", psi: float, *, num_first: int = 0, keep: bool = False
    ) -> None:
        self.pipe = pipe
        self.requests = requests
        self.psi = psi
        self.num_first = num_first
        self.keep = keep
        self.seconds = 0.0
        self.first: list[Image] = []
        self.kept: list[bytes] = []
        """All, as a page shows them, where they are to be kept."""

    def __iter__(self) -> "Iterator[Image]":
        from gigagan.evaluation.page import as_png

        size = self.pipe.micro_batch
        for start in range(0, len(self.requests), size):
            part = self.requests[start : start + size]
            texts, seeds = [r.text for r in part], [r.seed for r in part]
            started = time.monotonic()
            output = self.pipe(texts, seeds=seeds, truncation_psi=self.psi, output_type="pt")
            images = output.pyramid[0].permute(0, 2, 3, 1).numpy()
            self.seconds += time.monotonic() - started
            self.first.extend(images[: self.num_first - len(self.first)])
            self.kept.extend(as_png(image) for image in images if self.keep)
            yield from images
