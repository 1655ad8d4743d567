"""Train the heads over frozen MiniLM and EfficientNet-Lite0 on pictures and captions of our own.

A pair that is like CLIP, and where pictures have styles of the emoji set, a reading of those.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from gigagan.augment import Augmentation
from gigagan.config import AugmentConfig
from gigagan.data.dataset import CaptionedImages
from gigagan.data.sampling import STYLE_INDEX
from gigagan.errors import DataError
from gigagan.evaluation.evaluator import SentenceEncoder, pooled_text
from gigagan.evaluation.features import as_batch
from gigagan.evaluation.fit import Lesson, fit
from gigagan.evaluation.readers import Readers
from gigagan.evaluation.retrieval import recall_at
from gigagan.models.frozen import EfficientNetLite
from gigagan.models.layers import to_float
from gigagan.training.contrast import picture_features, text_vectors, texture_features

ROUNDS = 4
"""Each picture is learned from so many times: as it is, then augmented as in training, each with another caption."""
BATCH = 32
HELD_OUT = 50
"""One picture in so many is kept from the heads while they are judged, then learned from as well."""


@dataclass(frozen=True)
class TrainedHeads:
    """Heads, and how well they do."""

    heads: Readers
    others: Float[Tensor, "N D"]
    """Vectors of the pictures' first captions."""
    recall: float
    """R@1 of pictures kept back among their first captions, by heads that hadn't seen them."""
    kept_back: int
    """How many those were."""
    styles_read: float | None
    """Share of them whose style is read correctly; None where none has a style of the emoji set."""


def train_heads(
    data: CaptionedImages,
    network: EfficientNetLite,
    text_encoder: SentenceEncoder,
    *,
    resolution: int,
    seed: int = 0,
    progress: bool = False,
) -> TrainedHeads:
    """Heads of a set of captioned pictures.

    The image network sees pictures at `resolution` px, as in training (vision.resolution, or their side if larger).
    Raises DataError for fewer than 100 pictures, and for pictures without captions.
    """
    if not data.captioned:
        raise DataError(f"{data.path}: pictures without captions; the heads learn from both")
    looked = _look(data, network, resolution=resolution, seed=seed, progress=progress)
    captions, count = looked.captions, len(looked.captions)
    if count < 100:
        raise DataError(f"{data.path}: {count} pictures can be used; the heads need at least 100")
    # A round is another caption of each picture, from a start of its own, so that every wording comes up.
    starts = [_hash(own[0]) for own in captions]
    rounds = [[own[(start + k) % len(own)] for own, start in zip(captions, starts, strict=True)] for k in range(ROUNDS)]
    texts = sorted({text for row in rounds for text in row} | {own[0] for own in captions})
    sentences = pooled_text(text_encoder, texts)
    place = {text: i for i, text in enumerate(texts)}
    chosen = torch.tensor([[place[text] for text in row] for row in rounds])

    def lesson(items: Tensor) -> Lesson:
        return Lesson(
            cells=looked.features[:, items].flatten(0, 1),
            texture=looked.texture[:, items].flatten(0, 1),
            style=looked.styles[items].repeat(ROUNDS),
            concept=torch.full((ROUNDS * len(items),), -1),
            caption=chosen[:, items].flatten(),
            caption_text=sentences,
            concept_text=torch.zeros(0, sentences.shape[1]),
            num_styles=len(STYLE_INDEX) if bool((looked.styles >= 0).any()) else 0,
        )

    every = torch.arange(count)
    kept_back = every % HELD_OUT == 0
    judged = fit(lesson(every[~kept_back]), seed=seed, progress=progress)
    first = torch.tensor([place[own[0]] for own in captions])
    scores = judged.caption_scores(judged.look(looked.features[0, kept_back]), sentences[first[kept_back]])
    recall = recall_at(1, scores, torch.arange(len(scores)))
    styles_read = None
    if judged.style is not None:
        read, styles = judged.style_logits(looked.texture[0, kept_back]).argmax(dim=1), looked.styles[kept_back]
        styles_read = float((read == styles)[styles >= 0].float().mean())
    heads = fit(lesson(every), seed=seed, progress=progress)
    others = text_vectors(heads, sentences[first.unique()])
    return TrainedHeads(heads, others, recall, len(scores), styles_read)


@dataclass(frozen=True)
class _Looked:
    """N usable pictures of a set, each seen R times."""

    captions: list[list[str]]
    """Those of each picture that name no background."""
    styles: Int[Tensor, " N"]
    """Which of the emoji set's styles; -1 where none."""
    features: Float[Tensor, "R N K"]
    texture: Float[Tensor, "R N M"]


@torch.no_grad()
def _look(data: CaptionedImages, network: EfficientNetLite, *, resolution: int, seed: int, progress: bool) -> _Looked:
    """Every usable picture, as it is, then augmented."""
    draw = torch.Generator().manual_seed(seed)
    device = network.stem.weight.device
    captions: list[list[str]] = []
    styles: list[int] = []
    parts: list[Tensor] = []
    textures: list[Tensor] = []
    for start in tqdm(range(0, len(data), BATCH), desc="pictures", unit="batch", disable=None if progress else True):
        samples = []
        for index in range(start, min(start + BATCH, len(data))):
            try:
                samples.append(data[index])
            except DataError:
                continue  # `gigagan data check` names it
        if not samples:
            continue
        captions += [[c.text for c in s.captions if c.background is None] or [s.captions[0].text] for s in samples]
        styles += [STYLE_INDEX.get(str(sample.meta.get("style")), -1) for sample in samples]
        img = to_float(as_batch([sample.image for sample in samples])).to(device)
        if img.shape[2] > resolution:
            img = F.interpolate(img, size=(resolution, resolution), mode="bilinear", antialias=True)
        looks = [img]
        for _ in range(ROUNDS - 1):
            augmentation = Augmentation.draw(AugmentConfig(prob=1.0), len(img), draw, device)
            looks.append(augmentation([img])[0])
        seen = [network(look, min_res=resolution) for look in looks]
        parts.append(torch.stack([picture_features(one).cpu() for one in seen]))
        textures.append(torch.stack([texture_features(one).cpu() for one in seen]))
    nothing = [torch.zeros(ROUNDS, 0, 0)]
    return _Looked(
        captions, torch.tensor(styles), torch.cat(parts or nothing, dim=1), torch.cat(textures or nothing, dim=1)
    )


def _hash(text: str) -> int:
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0]
