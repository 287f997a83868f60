"""Objects of a store: reading, writing, listing, and the conditional replacement of one object.

The store is a prefix of an S3 bucket, a folder (`file://`, such as a network disk) or memory (`memory://`, for tests),
by universal-pathlib. S3 replaces an object on condition by `If-Match` and `If-None-Match`; a folder and memory compare
under a lock. Credentials and the endpoint come from the usual variables: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL and so on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from kronos_pipeline.errors import KronosError, first_sentence

STORE = "KRONOS_ARTIFACT_STORE"
_PLACE = re.compile(r"(?:s3://[A-Za-z0-9._-]+|file:///|memory://)[^?#@\s]*")
_USER = re.compile(r"//[^/@\s]*@")
_PREAMBLE = re.compile(r"^An error occurred \((\w+)\) when calling the \w+ operation: ")
_CONNECT_SECONDS, _READ_SECONDS = 3, 20
_ETAG = "ETag"
_AWAY_SECONDS = 20.0
"""Seconds after a failure in which the store is not asked again: each question takes seconds."""
_TRIES = 2
"""Times that a request which got no answer is made; botocore and s3fs would make it 25 times, in minutes."""
_memory_lock = threading.Lock()


class StoreError(KronosError):
    """Artifact store that refuses a request, a damaged object in it, or artifacts of two machines that conflict."""


class StoreAwayError(StoreError):
    """Artifact store that does not answer; what is to be delivered waits in the output folder."""


class DamagedError(StoreError):
    """Object of the store that is missing, or not as it was written."""


class MissingError(Exception):
    """Object that is not there."""


class ChangedError(Exception):
    """Object that another process has replaced or made since it was read."""


@lru_cache
def open_store(url: str) -> ObjectStore:
    """Return the store at an address; nothing is asked of it yet.

    Raises:
        StoreError: the address is invalid, or the extra `s3` is not installed.
    """
    if _USER.search(url) or _USER.search(os.environ.get("AWS_ENDPOINT_URL", "")):
        raise StoreError(
            f"{STORE} and AWS_ENDPOINT_URL must hold no user or password; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead."
        )
    if not _PLACE.fullmatch(url):
        raise StoreError(f"{STORE} is no address of a store: write s3://BUCKET/PREFIX or file:///FOLDER.")
    return ObjectStore(url.rstrip("/"))


class ObjectStore:
    """The objects below a prefix; a key is a path relative to it, such as `pointers/AAPL.json`.

    Attributes:
        url: the address, without credentials.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._scheme = url.partition("://")[0]
        self._away: tuple[float, str] | None = None

    @cached_property
    def _root(self) -> tuple[Any, str]:
        """The filesystem, one for all threads, which share its connections; and the prefix."""
        from upath import UPath  # with s3fs, half a second

        options: dict[str, Any] = {}
        if self._scheme == "s3":
            options = {
                "use_listings_cache": False,
                "skip_instance_cache": True,  # the settings below are this project's alone
                "config_kwargs": {
                    "connect_timeout": _CONNECT_SECONDS,
                    "read_timeout": _READ_SECONDS,
                    "retries": {"total_max_attempts": 1},
                },
            }
        try:
            path = UPath(self.url, **options)
            filesystem: Any = path.fs
        except ImportError as error:
            raise StoreError(f"{self.url} needs s3fs; install the extra s3: uv pip install -e '.[s3]'.") from error
        if self._scheme == "s3":
            filesystem.retries = _TRIES
        return filesystem, path.path.rstrip("/")

    def check_mounted(self, key: str) -> None:
        """Check that the store's folder still has an object that it had: a disk that is not mounted leaves it empty.

        Raises:
            StoreAwayError: the object is gone.
        """
        if self._scheme == "file" and not (Path(self.url.removeprefix("file://")) / key).is_file():
            raise StoreAwayError(f"The artifact store {self.url} cannot be reached (its disk is not mounted).")

    def read(self, key: str) -> tuple[bytes, str]:
        """Return the bytes of a small object and its tag, which `replace` compares.

        Raises:
            MissingError: there is no such object.
            StoreError: the store does not answer, or refuses.
        """
        filesystem, root = self._root
        with self._errors(key):
            if self._scheme != "s3":
                with self._exclusive(root):
                    content: bytes = filesystem.cat_file(f"{root}/{key}")
                return content, _digest(content)
            bucket, _, prefix = f"{root}/{key}".partition("/")
            answer = filesystem.call_s3("get_object", Bucket=bucket, Key=prefix)
            return _body(filesystem, answer["Body"]), answer[_ETAG]

    def replace(self, key: str, content: bytes, tag: str | None) -> str:
        """Replace an object if its tag is still `tag`, or make it if `tag` is None and there is none; return its tag.

        Raises:
            ChangedError: another process was faster.
            StoreError: the store does not answer, or refuses.
        """
        filesystem, root = self._root
        with self._errors(key):
            if self._scheme == "s3":
                bucket, _, prefix = f"{root}/{key}".partition("/")
                condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
                answer = filesystem.call_s3("put_object", Bucket=bucket, Key=prefix, Body=content, **condition)
                new: str = answer[_ETAG]
                return new
            with self._exclusive(root):
                path = f"{root}/{key}"
                present = _digest(filesystem.cat_file(path)) if filesystem.exists(path) else None
                if present != tag:
                    raise ChangedError
                self._put(filesystem, path, content)
                return _digest(content)

    def upload(self, key: str, source: Path | bytes) -> None:
        """Write an object that no process replaces later.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        filesystem, root = self._root
        with self._errors(key):
            if self._scheme == "s3" and isinstance(source, Path):
                filesystem.put_file(str(source), f"{root}/{key}")
            else:
                self._put(filesystem, f"{root}/{key}", source if isinstance(source, bytes) else source.read_bytes())

    def download(self, key: str, target: Path) -> None:
        """Write the bytes of an object to a file.

        Raises:
            MissingError: there is no such object.
            StoreError: the store does not answer, or refuses.
        """
        filesystem, root = self._root
        with self._errors(key):
            filesystem.get_file(f"{root}/{key}", str(target))

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a folder, sorted.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        return sorted(self._find(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of the objects below a folder, by key.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        return {key: int(info["size"]) for key, info in self._find(prefix).items()}

    def tags(self, prefix: str) -> dict[str, str | None]:
        """Return the tag of each object below a folder, as `read` gives it; None if the listing has no tags.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        return {key: info.get(_ETAG) for key, info in self._find(prefix).items()}

    def _find(self, prefix: str) -> dict[str, dict[str, Any]]:
        filesystem, root = self._root
        with self._errors(prefix):
            try:
                found = filesystem.find(f"{root}/{prefix.rstrip('/')}", detail=True)
            except FileNotFoundError:
                return {}
        keys = {path.removeprefix(f"{root}/"): info for path, info in found.items()}
        return {key: info for key, info in keys.items() if not key.endswith((".tmp", ".lock"))}

    def remove(self, key: str) -> None:
        """Remove an object; nothing happens if it is gone.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        filesystem, root = self._root
        with self._errors(key):
            try:
                filesystem.rm_file(f"{root}/{key}")
            except FileNotFoundError:
                return

    def _put(self, filesystem: Any, path: str, content: bytes) -> None:
        """Write an object at once: in a folder, under another name that is renamed."""
        if self._scheme != "file":
            filesystem.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _exclusive(self, root: str) -> Iterator[None]:
        if self._scheme == "memory":
            with _memory_lock:
                yield
            return
        Path(root).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(root) / "store.lock"):
            yield

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn the errors of the libraries into those of this module, without addresses that hold a password."""
        if self._away and time.monotonic() - self._away[0] < _AWAY_SECONDS:
            raise StoreAwayError(self._away[1])
        try:
            yield
        except (KronosError, MissingError, ChangedError):
            raise
        except Exception as error:
            translated = self._translated(key, error)
            if isinstance(translated, StoreAwayError):
                self._away = time.monotonic(), str(translated)
            raise translated from error

    def _translated(self, key: str, error: Exception) -> Exception:
        response: Any = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
        code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
        if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
            return ChangedError(key)
        if code in ("NoSuchKey", "404") or (isinstance(error, FileNotFoundError) and code != "NoSuchBucket"):
            return MissingError(key)
        reason = _USER.sub("//", _PREAMBLE.sub(r"\1: ", first_sentence(error)))
        names = {kind.__name__ for kind in type(error).__mro__}
        if code == "NoSuchBucket" or isinstance(error, PermissionError | ValueError) or names & _REFUSALS:
            return StoreError(
                f"The artifact store {self.url} refuses {key} ({reason}); mend {STORE}, AWS_ENDPOINT_URL or the "
                "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE)."
            )
        return StoreAwayError(f"The artifact store {self.url} cannot be reached ({reason}).")


_REFUSALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "ParamValidationError",
    "NoRegionError",
}
"""Names of botocore's errors of settings, which time does not mend."""


def _body(filesystem: Any, stream: Any) -> bytes:
    """Read the body of an answer in the event loop of the filesystem, which has a thread of its own."""
    content: bytes = asyncio.run_coroutine_threadsafe(stream.read(), filesystem.loop).result(_READ_SECONDS)
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def store_url() -> str | None:
    """Return the address of the artifact store, or None on a machine that keeps its artifacts to itself."""
    return os.environ.get(STORE) or None


def retry_changed(change: Callable[[], None], tries: int = 50) -> None:
    """Repeat a change until no other process was faster.

    Raises:
        StoreError: other processes were faster each time.
    """
    for _ in range(tries):
        try:
            return change()
        except ChangedError:
            continue
    raise StoreError(f"Other machines change the same artifacts all the time ({tries} tries); run the command again.")
