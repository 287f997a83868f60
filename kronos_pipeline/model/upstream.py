"""The upstream architecture, from the copy that sktime maintains: the only module that imports it.

All other code takes whatever has the same submodules, so upstream's own objects work too.
"""

from __future__ import annotations

from sktime.libs.kronos import Kronos, KronosTokenizer

__all__ = ["Kronos", "KronosTokenizer"]
