"""Upstream's architecture, from the copy that sktime maintains; no other module imports it.

Other code accepts any object with the same submodules, so upstream's own objects work too.

`import sktime` loads scikit-learn, scipy.stats and sktime's own checks of estimators: a second, for code that the model
does not use. So this module imports the model's code without the `__init__` of the packages above it. Later code that
imports it by its public name, `from sktime.libs.kronos import Kronos`, gets the same module, and `import sktime` still
gives the whole package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

_BARE = ("sktime", "sktime.utils")
"""Packages whose `__init__` the model's code does without."""
_KEPT = "sktime.libs"
"""The package that stays imported, with the model's code in it."""


@contextmanager
def _bare_packages() -> Iterator[None]:
    """Let packages of sktime be imported without their `__init__`, unless sktime is imported already."""
    if "sktime" in sys.modules or (spec := find_spec("sktime")) is None or not spec.submodule_search_locations:
        yield
        return
    for name in _BARE:
        package = ModuleType(name)
        folders = spec.submodule_search_locations
        package.__path__ = [folder + name.removeprefix("sktime").replace(".", "/") for folder in folders]
        sys.modules[name] = package
    kept = "sktime."  # nothing, if the import fails
    try:
        yield
        kept = _KEPT
    finally:  # leave no package behind that lacks its `__init__`
        for name in [name for name in sys.modules if name.partition(".")[0] == "sktime"]:
            if not f"{name}.".startswith(f"{kept}."):
                del sys.modules[name]


try:
    with _bare_packages():
        from sktime.libs.kronos import Kronos, KronosTokenizer
except (ImportError, AttributeError):  # another layout of sktime, whose model's code needs its packages
    from sktime.libs.kronos import Kronos, KronosTokenizer

__all__ = ["Kronos", "KronosTokenizer"]
