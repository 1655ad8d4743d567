"""Train the readers on features of real pictures: a minute or two on two cores, the same bits for the same seed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from gigagan.evaluation.readers import Dropout, Readers

FIT_VERSION = 3
"""Raised with every change here or in readers.py that moves a number; readers of another version aren't loaded."""
BATCH = 512
EPOCHS = 8
LR = 1e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.3
LABEL_SMOOTHING = 0.1
NAME_ONLY_PROB = 0.3
"""Share of concepts that go by their name alone in a step, as an unseen concept has to."""


@dataclass(frozen=True)
class Lesson:
    """What the readers learn from. N pictures, K features of cells, M of texture, E of texts, Q texts, C concepts."""

    cells: Float[Tensor, "N K"]
    texture: Float[Tensor, "N M"]
    style: Int[Tensor, " N"]
    concept: Int[Tensor, " N"]
    caption: Int[Tensor, " N"]
    """Row of caption_text; equal captions share one."""
    caption_text: Float[Tensor, "Q E"]
    concept_text: Float[Tensor, "C E"]
    num_styles: int


def fit(lesson: Lesson, *, seed: int = 0, epochs: int = EPOCHS, progress: bool = False) -> Readers:
    """Readers trained on the lesson, by AdamW with a cosine rate."""
    draw = torch.Generator().manual_seed(seed)
    readers = _new_readers(lesson, draw)
    count = len(lesson.cells)
    batch = min(BATCH, max(2, count // 8))
    steps = epochs * (count // batch)
    optimizer = torch.optim.AdamW(readers.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=0.1)

    def dropout(x: Tensor) -> Tensor:
        kept = torch.empty_like(x).bernoulli_(1 - DROPOUT, generator=draw)
        return x * kept.mul_(1 / (1 - DROPOUT))

    order = torch.empty(0, dtype=torch.long)
    for _ in tqdm(range(steps), desc="readers", unit="step", disable=None if progress else True):
        if len(order) < batch:
            order = torch.randperm(count, generator=draw)
        index, order = order[:batch], order[batch:]
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(readers, lesson, index, dropout, draw)
        loss.backward()
        optimizer.step()
        schedule.step()
    return readers.eval().requires_grad_(False)


def _new_readers(lesson: Lesson, draw: torch.Generator) -> Readers:
    readers = Readers(
        cells_dim=lesson.cells.shape[1],
        texture_dim=lesson.texture.shape[1],
        text_dim=lesson.caption_text.shape[1],
        num_styles=lesson.num_styles,
        num_concepts=len(lesson.concept_text),
        generator=draw,
    )
    readers.trunk.standardize(lesson.cells)
    if readers.style_trunk is not None:
        readers.style_trunk.standardize(lesson.texture)
    readers.caption_trunk.standardize(lesson.caption_text)
    if readers.name_trunk is not None:
        readers.name_trunk.standardize(lesson.concept_text)
        readers.concept_text.copy_(lesson.concept_text)
        readers.concept_seen[lesson.concept[lesson.concept >= 0].unique()] = True
    return readers


def _loss(readers: Readers, lesson: Lesson, index: Tensor, dropout: Dropout, draw: torch.Generator) -> Tensor:
    """Cross-entropies of style, concept and, both ways, caption."""
    x = readers.look(lesson.cells[index], dropout)
    loss = _caption_loss(readers, x, lesson, index, dropout)
    if readers.style is not None:
        logits = readers.style_logits(lesson.texture[index], dropout)
        loss = loss + F.cross_entropy(logits, lesson.style[index], label_smoothing=LABEL_SMOOTHING, ignore_index=-1)
    if readers.concept is not None:
        known = torch.rand(len(lesson.concept_text), generator=draw) >= NAME_ONLY_PROB
        scores = readers.concept_scores(x, dropout, offset=known)
        # Concepts never seen in training are no wrong answers in training.
        scores = scores.masked_fill(~readers.concept_seen, -1e4)
        loss = loss + F.cross_entropy(scores, lesson.concept[index], ignore_index=-1)
    return loss


def _caption_loss(readers: Readers, x: Tensor, lesson: Lesson, index: Tensor, dropout: Dropout) -> Tensor:
    """Each picture finds its caption in the batch, each caption all its pictures (CLIP, Radford et al. 2021)."""
    captions, own = lesson.caption[index].unique(return_inverse=True)
    scores = readers.caption_scores(x, lesson.caption_text[captions], dropout)
    pairs = own[:, None] == torch.arange(len(captions))  # [B, Q]
    by_picture = -scores.log_softmax(dim=1)[pairs].mean()
    by_caption = -scores.log_softmax(dim=0)[pairs].mean()
    return (by_picture + by_caption) / 2
