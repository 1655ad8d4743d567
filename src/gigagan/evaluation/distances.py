"""Distances between two sets of pictures, from their features, in float64. Only Inception pool3 2048 would be FID.

Axes: N, M pictures of the two sets, D features.
"""

from jaxtyping import Float
from torch import Tensor, nn

from gigagan.errors import MissingExtra


class _AsGiven(nn.Module):
    """Features stand in for the pictures that torchmetrics would take them of."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the Gaussians fitted to two sets (Heusel et al. 2017).

    Biased upwards for small sets: compare only figures of equal N and M. Raises MissingExtra without torchmetrics.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise MissingExtra("torchmetrics", "eval") from None
    metric = FrechetInceptionDistance(feature=_AsGiven(a.shape[1]))
    metric.update(a.double().cpu(), real=True)
    metric.update(b.double().cpu(), real=False)
    return float(metric.compute())


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """Unbiased squared MMD of two sets under k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018), over all pairs.

    0 on average for two sets from one distribution, so it may fall below 0. Raises MissingExtra without torchmetrics.
    """
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError:
        raise MissingExtra("torchmetrics", "eval") from None
    # The class in torchmetrics draws subsets from the global random state; all pairs at once need no draw.
    size = min(len(a), len(b))  # poly_mmd takes equal sets.
    return float(poly_mmd(a[:size].double().cpu(), b[:size].double().cpu()))
