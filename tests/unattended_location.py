"""The code location of an unattended machine: the project's own, with the settings of KRONOS_UNATTENDED_SETTINGS.

Pictures are one pixel, as `quick_parts` explains.
"""

from __future__ import annotations

import json
import os

import quick_parts  # noqa: F401 - no pictures

from kronos_pipeline.config import environment_settings
from kronos_pipeline.definitions import build
from kronos_pipeline.orchestration.automation.jobs import AutomationSettings
from kronos_pipeline.orchestration.resources import PipelineSettings, with_defaults

_settings = {**environment_settings(), **json.loads(os.environ["KRONOS_UNATTENDED_SETTINGS"])}
defs = build(with_defaults(PipelineSettings, _settings), AutomationSettings.from_environment())
