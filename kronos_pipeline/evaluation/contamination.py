"""Whether the bars that an evaluation scores may have been among those that its base model was pre-trained on."""

from __future__ import annotations

import pandas as pd

from kronos_pipeline.base_models import BaseModelSource


def contamination(source: BaseModelSource, first_holdout: pd.Timestamp) -> str | None:
    """What tables, plots, manifests and tags say of an evaluation's bars; None where the base model never saw them.

    A published base model learned from market bars up to May 2024, so scores on bars before June 2024 may show memory
    where they seem to show skill: "may have been seen in pre-training". The same goes for a local copy of one. Of a
    model that nobody describes it is said that this is not known; simulated bars alone are no reason for doubt.

    Args:
        source: the base model of what is evaluated.
        first_holdout: time of the first bar that is scored, in the file's own local time.
    """
    return source.contamination(first_holdout.to_pydatetime(warn=False))
