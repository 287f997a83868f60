"""Dagster's daemon, which looks at schedules and sensors every second: a clock that jumps lets it wait no minute."""

from __future__ import annotations

from typing import Any

import dagster._daemon.sensor
import dagster._scheduler.scheduler
from dagster._daemon.cli import main

sensor: Any = dagster._daemon.sensor
scheduler: Any = dagster._scheduler.scheduler
sensor.MIN_INTERVAL_LOOP_TIME = 1
scheduler._get_next_scheduler_iteration_time = lambda start: start + 1

if __name__ == "__main__":
    main()
