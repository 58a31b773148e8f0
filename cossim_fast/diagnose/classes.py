"""What labels add: alignment, and how well the classes separate."""

from dataclasses import dataclass

from torch import Tensor

from cossim_fast._products import full_precision_product

_TILE = 512


@dataclass(frozen=True)
class Classes:
    """Measures of labelled directions; the cosines are exact over all pairs of rows."""

    count: int
    within: float
    between: float
    nearest_accuracy: float
    chance_accuracy: float

    @property
    def alignment(self) -> float:
        r"""Mean squared distance of two rows of one class, :math:`E\|u - v\|^2`.

        Wang and Isola (2020), "Understanding contrastive representation learning through
        alignment and uniformity on the hypersphere", α = 2; pairs of one
        class stand for pairs of views.
        """
        return 2 - 2 * self.within

    @property
    def separation(self) -> float:
        """Mean cosine within classes less that between classes."""
        return self.within - self.between

    @property
    def separate(self) -> bool:
        """Whether nearest neighbours close more than half of the gap that chance leaves."""
        return self.nearest_accuracy > (1 + self.chance_accuracy) / 2


def measure_classes(sums: Tensor, sizes: Tensor, sample: Tensor, sample_labels: Tensor) -> Classes:
    """Measure from the sums of unit rows of each class, and from a sample of unit rows.

    The sum over pairs within a class is ‖S_c‖² - n_c, so no matrix is needed. The accuracy
    is that of the nearest other row of the sample (Cover and Hart 1967, "Nearest neighbor
    pattern classification"), against that of a guess by class size.
    """
    n = sizes.double()
    squares = sums.square().sum(1)
    pairs_within = float((n * (n - 1)).sum())
    pairs_between = float(n.sum().square() - n.square().sum())
    between = float(sums.sum(0).square().sum() - squares.sum())
    rows = sample.float()
    hits = 0
    for start in range(0, len(rows), _TILE):
        tile = rows[start : start + _TILE]
        cosines = full_precision_product(tile, rows.T)
        cosines[:, start : start + len(tile)].fill_diagonal_(-2)
        found = sample_labels[cosines.argmax(1)]
        hits += int((found == sample_labels[start : start + _TILE]).sum())
    return Classes(
        count=int((sizes > 0).sum()),
        within=float((squares - n).sum()) / pairs_within if pairs_within else float("nan"),
        between=between / pairs_between if pairs_between else float("nan"),
        nearest_accuracy=hits / len(rows),
        chance_accuracy=float((n / n.sum()).square().sum()),
    )
