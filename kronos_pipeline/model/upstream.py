"""Upstream's architecture, from the copy that sktime maintains; no other module imports it.

Other code accepts any object with the same submodules, so upstream's own objects work too.
"""

from __future__ import annotations

from sktime.libs.kronos import Kronos, KronosTokenizer

__all__ = ["Kronos", "KronosTokenizer"]
