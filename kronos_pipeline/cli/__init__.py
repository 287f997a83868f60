"""The command line: a module per subcommand of `kronos`."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kronos` and return its exit code; the console script calls it."""
    from kronos_pipeline.cli import app

    return app.main(arguments)
