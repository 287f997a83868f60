"""Print the commands of a Markdown file that run as they stand: those in fences that open with ```bash offline."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```bash offline\n(.*?)^```$", re.DOTALL | re.MULTILINE)

blocks = FENCE.findall(Path(sys.argv[1]).read_text(encoding="utf-8"))
if not blocks:
    sys.exit(f"error: {sys.argv[1]} has no fence that opens with ```bash offline, so none of its commands is tested.")
sys.stdout.write("".join(blocks))
