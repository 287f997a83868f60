"""`python -m kronostraining.run_training` is `python -m kronos_pipeline.run_training`."""

from __future__ import annotations

import sys

from kronos_pipeline.run_training import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
