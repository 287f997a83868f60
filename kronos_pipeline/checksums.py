"""Bytes of JSON and Parquet artifacts: a checksum inside that each reading verifies, and limits before the parsing.

The checksum is the SHA-256 of the file's bytes with zeros in place of the checksum's own digits, as in the header of a
tar file, so a file carries it along and is still written in one piece:

    {..., "checksum": "kronos-sha256:1f2e..."}              the last entry of a JSON object
    kronos_checksum = "kronos-sha256:1f2e..."               an entry of a Parquet file's metadata

Files without a checksum, of earlier versions or of other programs, are read as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kronos_pipeline.errors import ArtifactError

LARGEST_JSON = 2**30
"""Bytes. The evaluation of 1,000 tickers takes 14 MB, so 60,000 fit."""
LARGEST_SETTINGS = 2**20
"""Bytes of a model's config.json or adapter_config.json; published models have less than 1 KB."""
_FREE_TABLE, _TABLE_RATIO = 2**28, 100
"""Bytes of a decoded Parquet table without a limit; above it, the largest ratio to the bytes of the file.

Prices take 2 bytes each or more in a file, and 8 in memory."""
_CODECS = {"SNAPPY", "UNCOMPRESSED"}
"""Codecs that this project writes: with them, a page is at most 21 times larger than its bytes."""

_LARGE_FILE, _SETTLED_NS = 2**20, 2 * 10**9
"""Bytes and nanoseconds: the hash of a file that is larger, and was changed longer ago, is kept in memory."""
_known_hashes: dict[tuple[int, ...], str] = {}

_CHECKSUM = "checksum"
_PARQUET_CHECKSUM = b"kronos_checksum"
_TAG, _DIGITS = b"kronos-sha256:", 64
_PLACEHOLDER = _TAG.decode() + "0" * _DIGITS


def json_text(content: Any, indent: int | None = None) -> str:
    """Return JSON; NaN and infinity raise ValueError, as standard JSON has neither."""
    return json.dumps(content, indent=indent, allow_nan=False, default=_json_value)


def json_bytes(content: Any, *, checksum: bool = True) -> bytes:
    """Return the bytes of a JSON file; if `content` is an object, with a checksum unless the caller wants none."""
    if not checksum or not isinstance(content, Mapping):
        return (json_text(content, indent=2) + "\n").encode()
    return _fill((json_text({**content, _CHECKSUM: _PLACEHOLDER}, indent=2) + "\n").encode())


def json_lines_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a large JSON object with a checksum, with a line for each entry and each item of its lists.

    It has two thirds of the bytes of an indented file, and takes a quarter of the time to write.
    """

    def value(entry: Any) -> str:
        if isinstance(entry, list) and entry:
            return "[\n" + ",\n".join(map(json_text, entry)) + "\n]"
        return json_text(entry)

    lines = (f"{json_text(key)}: {value(entry)}" for key, entry in {**content, _CHECKSUM: _PLACEHOLDER}.items())
    return _fill(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is no JSON, or JSON of another kind, or too deeply nested.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_json_bytes(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON object and verify its checksum, which is not part of the result.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object, or is too large.
        ArtifactError: it is not as it was written.
    """
    if (size := path.stat().st_size) > limit:
        raise ValueError(f"{size:,} bytes, and {limit:,} are the limit")
    text = path.read_bytes()
    verify(path, text)
    content = parse_json(text)
    content.pop(_CHECKSUM, None)
    return content


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the bytes of a Parquet file with a checksum."""
    metadata = {**(table.schema.metadata or {}), _PARQUET_CHECKSUM: _PLACEHOLDER.encode()}
    # Prices rarely repeat, so a dictionary encoding makes the file larger and doubles the time of writing.
    repeating = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, use_dictionary=repeating)
    return _fill(buffer.getvalue())


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, and verify its checksum and the size of its table.

    Raises:
        OSError, ValueError, pa.ArrowException: the file cannot be read, or its table is too large.
        ArtifactError: it is not as it was written.
    """
    content = path.read_bytes()
    verify(path, content)
    file = pq.ParquetFile(pa.BufferReader(content))
    _check_table_size(file.metadata, len(content))
    _check_texts(file.metadata, content)
    return file


def verify(path: Path, content: bytes) -> None:
    """Compare the bytes of a file with the checksum inside, if it has one.

    Raises:
        ArtifactError: they differ.
    """
    start = content.rfind(_TAG)
    if start < 0:
        return
    digits = slice(start + len(_TAG), start + len(_TAG) + _DIGITS)
    view = memoryview(content)
    digest = hashlib.sha256(view[: digits.start])
    digest.update(b"0" * len(view[digits]))
    digest.update(view[digits.stop :])
    if digest.hexdigest().encode() != content[digits]:
        raise changed_file(path, digest.hexdigest(), content[digits].decode(errors="replace"))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; computed once per process for a large file that stays the same."""
    status = path.stat()
    settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS  # a later change has another time
    if settled and status.st_size > _LARGE_FILE:
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in _known_hashes:
            _known_hashes[identity] = _hash(path)
        return _known_hashes[identity]
    return _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def bytes_hash(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def text_hash(*parts: str) -> str:
    """Return the SHA-256 of texts in order, in hex."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()


def changed_file(path: Path, actual: str, recorded: str) -> ArtifactError:
    """Return the error of a file whose hash is not the recorded hash."""
    return ArtifactError(
        f"{path} was edited or damaged after it was written (checksum {actual[:12]}, recorded {recorded[:12]!s}); "
        f"{remedy(path)}."
    )


_COMMANDS = {
    "bars": "kronos train --adapter lora",
    "windows": "kronos train --adapter lora",
    "adapters": "kronos train --adapter lora",
    "checkpoints": "kronos train",
    "refits": "kronos train --adapter lora --refit-all",
    "metrics": "kronos train --adapter lora",
    "backtest": "kronos backtest --adapter lora",
    "forecasts": "kronos forecast",
    "champions": "kronos forecast",
    "track_record": "kronos record",
    "base": "kronos train --adapter lora",
    "seeds": "kronos train --adapter lora --seeds",
    "mlruns": "kronos train --adapter lora",
}
"""By folder of the output folder: the command that makes its files again."""


def remedy(path: Path) -> str:
    """Return the advice for a file that cannot be used: a backup, or the command that makes the file again."""
    for folder in path.parents:
        if folder.name == "ledger":
            return "its forecasts do not count; move the file elsewhere, or restore it from a copy"
        if folder.name in _COMMANDS and folder.parent != folder:
            command = f"{_COMMANDS[folder.name]} --output-dir {folder.parent}"
            return f"restore it from a backup, or make it again with `{command}` and your other flags"
    return "restore it from a backup, or make it again"


def _fill(content: bytes) -> bytes:
    """Replace the zeros of the last checksum in a file's bytes by the hash of these bytes."""
    start = content.rfind(_TAG) + len(_TAG)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + _DIGITS :]


def _check_table_size(metadata: pq.FileMetaData, file_bytes: int) -> None:
    """Refuse a table that would take far more memory than its file, before a value of it is decoded."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    values = max(metadata.num_rows * metadata.num_columns, sum(chunk.num_values for chunk in chunks))
    largest = max(_FREE_TABLE, _TABLE_RATIO * file_bytes)
    if 8 * values > largest:
        raise ValueError(
            f"{metadata.num_rows:,} rows of {metadata.num_columns} columns, too many for a file of {file_bytes:,} bytes"
        )
    if foreign := {chunk.compression for chunk in chunks} - _CODECS:
        raise ValueError(f"compressed by {', '.join(sorted(foreign))}, which this project does not write")


def _check_texts(metadata: pq.FileMetaData, content: bytes) -> None:
    """Refuse texts that would take far more memory than their file: a long text that many rows share is stored once."""
    largest = max(_FREE_TABLE, _TABLE_RATIO * len(content))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    texts = [chunk for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"]
    # No text is longer than its chunk; only where that bound is too coarse, the texts are read, each of them once.
    if sum(chunk.num_values * chunk.total_uncompressed_size for chunk in texts) <= largest:
        return
    names = sorted({chunk.path_in_schema for chunk in texts})
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=names)
    expanded = 0
    for name in names:
        for part in file.read(columns=[name]).column(0).chunks:
            if pa.types.is_dictionary(part.type):
                lengths = pc.binary_length(part.dictionary)
                expanded += pc.sum(pc.take(lengths, part.indices.drop_null())).as_py() or 0
            else:
                expanded += part.nbytes
    if expanded > largest:
        raise ValueError(f"texts of {expanded:,} bytes, too many for a file of {len(content):,} bytes")


def _json_value(value: Any) -> Any:
    """Convert a NumPy scalar, a path or a date to a JSON type; other types are an error of the caller."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path | date):
        return str(value)
    raise TypeError(f"{value!r} has no place in a JSON artifact")
