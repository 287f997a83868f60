"""`python -m kronos_pipeline.cli` is `kronos`."""

import sys

from kronos_pipeline.cli import main

sys.exit(main())
