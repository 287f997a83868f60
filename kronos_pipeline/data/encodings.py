"""Decode a CSV: refuse files of other kinds by their first bytes, and try the encodings that its bytes can have."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from kronos_pipeline.data.csv_file import CsvFile
from kronos_pipeline.errors import DataError, Problem

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
"""Byte order marks, with the encoding that each states."""
LEGACY = ("gb18030", "cp932", "cp949", "big5", "cp1251", "cp1250", "cp1252")
"""Encodings of files that are not Unicode. Most bytes are text in several of them; the names of columns decide."""
ENCODING_NAMES = {"gb18030": "GBK", "cp932": "Shift JIS", "cp949": "EUC-KR", "big5": "Big5"}
_FOREIGN = (
    (b"PK\x03\x04", "a workbook or a zip file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"PAR1", "a parquet file"),
    (b"\xd0\xcf\x11\xe0", "an old workbook"),
    (b"%PDF-", "a PDF"),
    (b"{\\rtf", "formatted text"),
)
_WEB_PAGE = re.compile(rb"<!|<\?xml|</?(?:html|head|body|div|p|h\d|table|tr|span|script|style|meta|center|pre|svg)\b")


def check_text(file: CsvFile, content: bytes) -> None:
    """Check that a file is text of rows and columns.

    Raises:
        DataError: it is binary, a web page or JSON.
    """
    for mark, kind in _FOREIGN:
        if content.startswith(mark):
            raise file_error(file, f"the file is binary, not a CSV ({kind}); save it as CSV")
    start = content[:200].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if _WEB_PAGE.match(start):
        raise file_error(file, "the file is a web page, not a CSV; download it again")
    if b"".join(start.split()).startswith((b"{", b"[{", b"[[", b'["')):
        raise file_error(file, "the file is JSON, not a CSV; save it as CSV")


def decode(file: CsvFile, content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the texts that the bytes can be, each with the name of its encoding.

    Raises:
        DataError: the bytes are no text.
    """
    for mark, encoding, name in _MARKS:
        if content.startswith(mark):
            try:
                yield name, content.decode(encoding).removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise _undecodable(file, name, error) from error
            return
    if b"\0" in content:
        yield _wide(file, content)
        return
    try:
        yield "UTF-8", content.decode("utf-8")
    except UnicodeDecodeError as error:
        texts = 0
        for encoding in LEGACY:
            try:
                yield encoding, content.decode(encoding)
                texts += 1
            except UnicodeDecodeError:
                continue
        if not texts:
            raise _undecodable(file, "UTF-8", error) from error


def _wide(file: CsvFile, content: bytes) -> tuple[str, str]:
    """Decode UTF-16 without a byte order mark: every second byte of ASCII is 0."""
    head = content[:4096]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = head[start::2].count(0), head[1 - start :: 2].count(0)
        if zeros > len(head) // 4 and others < zeros // 8:
            try:
                return "UTF-16", content.decode(encoding)
            except UnicodeDecodeError as error:
                raise _undecodable(file, "UTF-16", error) from error
    raise file_error(file, "the file is binary, not a CSV; replace it with a text file")


def _undecodable(file: CsvFile, name: str, error: UnicodeDecodeError) -> DataError:
    decoded = error.object  # without the mark of the encoding
    line = decoded.count(b"\n", 0, error.start) + 1
    byte = f"byte 0x{decoded[error.start]:02x}" if error.start < len(decoded) else "its end"
    return file_error(file, f"the file is not {name} ({byte}); save it as UTF-8", line)


def file_error(file: CsvFile, rule: str, line: int | None = None) -> DataError:
    """Return the error of a file that breaks a rule, in a line of it or as a whole."""
    return DataError(Problem(file.name, rule, line), file.ticker)
