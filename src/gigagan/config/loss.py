"""Knobs of the losses: weights, their schedules, readings of the paper (paper 5)."""

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from gigagan.config.networks import Count, NonNegative, Section
from gigagan.config.schedule import Schedule, check_points, value_at


class Weights(NamedTuple):
    """Weights of the losses at one moment, named as in LossConfig."""

    adv: float
    match_D: float
    match_G: float
    r1_gamma: float
    vision: float
    clip: float
    paired_l1: float
    perceptual: float
    style: float


class LossConfig(Section):
    """Weights of the losses (paper 5); each may be a schedule, [[kimg, value], ...], straight between its points."""

    level_weights: tuple[NonNegative, ...] = (0.33, 0.17, 0.17, 0.17, 0.17)
    """Weight of each entry level, full resolution first."""
    adv_weight: Schedule = 1.0
    """Weight in G of what D says; 0 = G learns from the paired terms alone, without D (a first stage on small data)."""
    intermediate_adv_weight: NonNegative = 0.01
    """Weight of the adversarial logits at exits before the last."""
    intermediate_match_weight: NonNegative = 0.05
    """Weight of the matching logits at exits before the last."""
    match_weight_D: Schedule = 1.0
    """Matching-aware loss in D: pictures with a caption that isn't theirs are fake (Eq. 8)."""
    match_generated: bool = True
    """Whether these are generated pictures as well as real ones, in D and V; false = real ones alone (Reed et al.)."""
    match_weight_G: Schedule = 1.0
    """Matching-aware loss in G."""
    match_G: Literal["raise", "lower"] = "raise"
    """What G does to D's logits of its pictures under others' captions: raise = the literal min-max, its
    non-saturating form; lower = G agrees that they don't match. With match_weight_G=0 it does neither."""
    r1_gamma: Schedule = 0.2048
    """R1 strength: r1_gamma / 2 * E|grad|^2 (StyleGAN's convention)."""
    r1_interval: Count = 16
    """Lazy R1: applied every k steps, times k."""
    r1_share: float = Field(1.0, gt=0, le=1)
    """Share of the batch that R1 looks at."""
    paired_l1_weight: Schedule = 0.0
    """L1 between generated and real pyramids of one caption; for small data, 0 in the paper."""
    vision_weight: Schedule = 0.0
    """Vision-aided adversarial loss on the frozen image network (vision.network); 0 = without."""
    clip_weight: Schedule = 0.0
    """CLIP contrastive loss in G: a picture is to fit its caption better than any other (Eq. 9); 0 = without."""
    perceptual_weight: Schedule = 0.0
    """Distance of generated and real pictures of one caption in features of that network; 0 in the paper."""
    style_weight: Schedule = 0.0
    """Cross-entropy of the style that the heads (vision.heads) read off G's pictures of the emoji set, where the
    caption names it or z tells it (data.style_by_seed); 0 in the paper."""

    @model_validator(mode="after")
    def _weighs(self) -> "LossConfig":
        if not any(self.level_weights):
            raise ValueError("level_weights are all 0, so that nothing is judged; give a level a weight")
        for name in type(self).model_fields:
            if name != "level_weights":
                check_points(f"loss.{name}", getattr(self, name))
        return self

    def at(self, kimg: float) -> Weights:
        """The weights after so many thousand images."""
        return Weights(
            adv=value_at(self.adv_weight, kimg),
            match_D=value_at(self.match_weight_D, kimg),
            match_G=value_at(self.match_weight_G, kimg),
            r1_gamma=value_at(self.r1_gamma, kimg),
            vision=value_at(self.vision_weight, kimg),
            clip=value_at(self.clip_weight, kimg),
            paired_l1=value_at(self.paired_l1_weight, kimg),
            perceptual=value_at(self.perceptual_weight, kimg),
            style=value_at(self.style_weight, kimg),
        )
