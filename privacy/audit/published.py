"""What a hospital publishes of an audit, as both sides compute it."""

from privacy.noise.noised import STEP

NAME = "mia_auc"
"""The AUC of the membership attack by the calibrated loss."""
PROVENANCE = "provenance"
"""The share of evaluation patients whose hospital models' outputs give away."""
WITHIN = 1.96


def half_interval(noise_multiplier: float, declared: int) -> float:
    """Return half of the 95 % interval of an AUC's noise, of so many declared training patients.

    The AUC is 1/2 and half the difference of two sums over `declared`, each with this noise for a
    sensitivity of 1.

    >>> round(half_interval(1.0, 70), 4)
    0.0198
    """
    return WITHIN * noise_multiplier / declared / 2**0.5


def fits_its_noise(figures: dict[str, float], noise_multiplier: float, declared: int) -> bool:
    """Return whether the ends of a published AUC's interval are those of its noise."""
    half = half_interval(noise_multiplier, declared)
    low, value, high = (figures[name] for name in (f"low/{NAME}", NAME, f"high/{NAME}"))
    return abs(high - value - half) <= 2 * STEP and abs(value - low - half) <= 2 * STEP
