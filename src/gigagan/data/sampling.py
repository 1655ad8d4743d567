"""Which picture, caption, background and mirroring stands at each place of the endless training order. No torch here.

Place g is a function of (seed, g) alone: the batch size, the number of ranks or workers and restarts change nothing.
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gigagan.config import DataConfig
from gigagan.data.captions import TEMPLATES, Caption, canonical, restyled
from gigagan.data.dataset import CaptionedImages, Sample
from gigagan.data.draws import choose, draw
from gigagan.errors import DataError, Outage

log = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 100
MAX_OUTAGE_SEC = 300.0
"""A run waits so long for a server that doesn't answer."""
MAX_WAIT_SEC = 10.0
WHITE = (255, 255, 255)
STYLE_INDEX = {style: index for index, style in enumerate(TEMPLATES)}


@dataclass(frozen=True)
class Drawn:
    """One place of the order. Where nothing usable was found, key is empty."""

    image: UInt8[np.ndarray, "3 H W"]
    caption: str
    words: str
    """What G's attention reads; mostly the caption."""
    style: int
    """Which of the emoji set's styles the picture has, -1 where none."""
    styled: bool
    """Whether the caption names it."""
    true: tuple[str, ...]
    """First captions of pictures that fit this one as well, or that it may mean as well as its own."""
    key: str
    bad: tuple[str, ...]
    """What was found unusable on the way here, each with its reason."""


class DrawnBatches(Sequence[list[Drawn]]):
    """Item k is the part of the k-th batch after `start_nimg` images that one rank sees."""

    def __init__(
        self,
        cfg: DataConfig,
        dataset: CaptionedImages,
        order: Sequence[int],
        *,
        resolution: int,
        batch: int,
        seed: int,
        start_nimg: int,
        rank: int,
        world: int,
    ) -> None:
        self.cfg, self.dataset, self.order = cfg, dataset, order
        self.resolution, self.batch, self.seed = resolution, batch, seed
        self.start_nimg, self.rank, self.world = start_nimg, rank, world
        self.out_since = 0.0
        """When the outage began that lasts still, 0 where there is none."""
        self.closed = False
        """Nobody takes what is read any more, so nothing is waited for."""

    def __len__(self) -> int:
        return sys.maxsize // (2 * self.batch)

    def __getitem__(self, k: Any) -> Any:
        share = self.batch // self.world
        first = self.start_nimg + k * self.batch + self.rank * share
        return [self.at(place) for place in range(first, first + share)]

    def at(self, place: int) -> Drawn:
        """The sample at a place; where it is bad, the next good one of the set."""
        index, bad = int(self.order[place]), list[str]()
        while len(bad) <= MAX_BAD_IN_A_ROW:
            try:
                sample = self._read(index)
                return Drawn(*self._show(sample, place), sample.key, tuple(bad))
            except DataError as error:
                bad.append(str(error))
                index = (index + 1) % len(self.dataset)
        side = self.cfg.crop or self.resolution
        return Drawn(np.zeros((3, side, side), np.uint8), "", "", -1, True, (), "", tuple(bad))

    def _read(self, index: int) -> Sample:
        """A sample; an outage is waited out, since passing over the pictures would change what is learned.

        Raises Outage where it lasts, and soon where it has lasted: what was to be read ahead doesn't wait once more.
        """
        wait = 1.0
        while True:
            try:
                sample = self.dataset[index]
            except Outage as outage:
                now = time.monotonic()
                if not (self.out_since or self.closed):
                    self.out_since = now
                    log.warning("training waits for its data, %.0f minutes at most: %s", MAX_OUTAGE_SEC / 60, outage)
                if self.closed or now - self.out_since > MAX_OUTAGE_SEC:
                    raise Outage(f"{outage} (waited {now - self.out_since:.0f} s)") from None
                time.sleep(min(wait, MAX_WAIT_SEC))
                wait *= 2
            else:
                self.out_since = 0.0
                return sample

    def _show(
        self, sample: Sample, place: int
    ) -> tuple[UInt8[np.ndarray, "3 H W"], str, str, int, bool, tuple[str, ...]]:
        """Draw a caption, then the background that it names, then the square that is cut out, then the mirroring."""
        cfg, name = self.cfg, (self.seed, place)
        transparent = sample.image.shape[2] == 4
        colored = [caption for caption in sample.captions if caption.background is not None and transparent]
        plain = [caption for caption in sample.captions if caption.background is None]
        if colored and (not plain or draw(*name, "background") < cfg.background_prob):
            candidates = colored
        elif plain:
            styleless = draw(*name, "styleless") < cfg.styleless_prob
            candidates = [caption for caption in plain if caption.styled != styleless] or plain
        else:
            raise DataError(f"{sample.key}: its captions name backgrounds, but it has no alpha")
        caption: Caption = candidates[choose(len(candidates), *name, "caption")]
        image = composite(sample.image, caption.background or WHITE)
        if cfg.crop:
            image = self._cut(image, sample.key, *name)
        if draw(*name, "flip") < cfg.flip_prob:
            image = image[:, ::-1]
        words = caption.text
        if caption.styled and caption.background is None and draw(*name, "restyle") < cfg.restyled_prob:
            words = self._restyled(sample, *name)
        style = STYLE_INDEX.get(str(sample.meta.get("style")), -1)
        true = [sample.captions[0].text]
        if style >= 0 and not caption.styled and (noun := sample.meta.get("noun")):
            true += canonical(str(noun))
        shown = np.ascontiguousarray(image.transpose(2, 0, 1))
        return shown, caption.text, words, style, caption.styled, tuple(dict.fromkeys(true))

    def _restyled(self, sample: Sample, *name: object) -> str:
        try:
            return restyled(sample.meta["noun"], sample.meta["style"], seed=name)
        except KeyError:
            raise DataError(
                f"{sample.key}: data.restyled_prob needs a noun and a style of the emoji set; set it to 0"
            ) from None

    def _cut(self, image: UInt8[np.ndarray, "H W 3"], key: str, *name: object) -> UInt8[np.ndarray, "h w 3"]:
        """Of two squares at random places the one with more in it: many pictures are empty at their corners."""
        side = self.cfg.crop
        height, width = image.shape[:2]
        if min(height, width) < side:
            raise DataError(f"{key}: {width} x {height} px, but data.crop is {side}; leave out pictures that small")
        squares = []
        for attempt in range(2):
            top = choose(height - side + 1, *name, "top", attempt)
            left = choose(width - side + 1, *name, "left", attempt)
            squares.append(image[top : top + side, left : left + side])
        return max(squares, key=lambda square: float(square[::4, ::4].std()))


def composite(image: UInt8[np.ndarray, "H W C"], background: tuple[int, int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture on a background: (rgb alpha + background (255 - alpha)) / 255, rounded; as it is without alpha."""
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.uint16)
    below = np.array(background, np.uint16)
    return ((image[:, :, :3] * alpha + below * (255 - alpha) + 127) // 255).astype(np.uint8)
