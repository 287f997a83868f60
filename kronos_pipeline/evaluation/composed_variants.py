"""Which variant of a model's paths a composed forecast serves; the forecast and its score follow the same rules."""

from __future__ import annotations

from kronos_pipeline.evaluation.predictions import RECENTRED, RESCALED, SAMPLED, Variant


def keeps_its_centre(shape: Variant) -> bool:
    """Return True if paths that were chosen in a variant keep their own mean path where there is no champion of mean.

    Paths that were judged as sampled do: around the last close they would be a forecast that no evidence is about.

    Args:
        shape: the variant that was chosen for the distribution.
    """
    return shape == SAMPLED


def composed_variant(shape: Variant, *, own_centre: bool) -> Variant:
    """Return the variant of a model's paths that recentring on a centre makes of its shape.

    Around the model's own mean path the paths as sampled and the recentred paths are the paths as sampled; around the
    last close, both are the recentred paths. Rescaled paths stay rescaled.

    Args:
        shape: the variant that was chosen for the distribution.
        own_centre: True if the centre is the mean path of the same model.
    """
    if shape == RESCALED:
        return RESCALED
    return SAMPLED if own_centre else RECENTRED
