"""Files of records, read row by row: CSV, JSON Lines, Parquet, plain text. What cannot be read is refused by row."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inversedmixup.errors import InputError, local_path

DELIMITERS = ",;\t|"
_EXCEL_MARK = re.compile(rf'"?sep=([{DELIMITERS}])"?\s*')  # a first line that says what parts cells
_PACKED = (".gz", ".zst", ".zip", ".xz", ".bz2")
_PACKED_BEGINS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # gzip, zstd, zip
_UNPACK = "is packed; unpack it first, and give the .jsonl, .csv, .parquet or .txt file that is in it"
# What a spreadsheet would run as a formula: CSV output puts an apostrophe before it (and before an apostrophe that
# precedes it, so that reading can take one away again). Numbers are no formulas.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def iter_records(path: str | Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(row number, record)`` for each row of a .jsonl, .csv, .parquet or .txt file; .txt gives ``{"text": line}``.

    Row numbers are those an editor shows: lines of a text file from 1, with the header counted.

    Args:
        path: the file.
        columns: those that are looked at; of a .parquet file no others are read, and ``None`` stands in their place.

    Raises:
        InputError: naming the file, the row and the remedy.
    """
    path = local_path(path)
    readers: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
        ".jsonl": _iter_jsonl,
        ".csv": _iter_csv,
        ".parquet": partial(_iter_parquet, columns=columns),
        ".txt": _iter_txt,
    }
    reader = readers.get(path.suffix.lower())
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file ending in {', '.join(readers)}")
        if str(path) == "-":
            raise InputError("-: standard input is not read; give a file")
        if path.suffix.lower() in _PACKED:
            raise InputError(f"{path}: {_UNPACK}")
        if reader is None:
            raise InputError(f"{path}: cannot tell the format; rename it to end in {', '.join(readers)}")
        yield from reader(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that an error can name its line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"{path}: is UTF-16; convert the file, e.g. `iconv -f utf-16 -t utf-8`")
            if number == 1 and raw.startswith(_PACKED_BEGINS):
                raise InputError(f"{path}: {_UNPACK}")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: row {number}: not UTF-8 (byte {error.start + 1} of the row is 0x{raw[error.start]:02x}); "
                    f"convert the file, e.g. `iconv -f latin1 -t utf-8`"
                ) from None


def _iter_txt(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if line.strip():
            yield number, {"text": line.strip()}


def _iter_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = _DECODER.decode(line)
        except InputError as error:
            raise InputError(f"{path}: row {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: row {number}: not JSON ({error}); each line must be one object") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {number}: expected an object, found {type(record).__name__}")
        yield number, record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice one value would be lost."""
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise InputError(f"the key {twice!r} is there twice; remove one")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _iter_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _csv_lines(path)
    header, above = next(lines, ""), 0
    if said := _EXCEL_MARK.fullmatch(header):
        header, above = next(lines, ""), 1
    delimiter = said[1] if said else max(DELIMITERS, key=re.sub('"[^"]*"', "", header).count)
    limit = csv.field_size_limit(2**31 - 1)  # the default of 128 KiB would refuse a long cell without naming it
    try:
        reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
        names = [name if name.strip() else "" for name in next(reader, [])]
        if header and not names:
            raise InputError(f"{path}: row {above + 1}: no column names; remove blank lines at the top")
        if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
            raise InputError(f"{path}: row {above + 1}: the column {twice[0]!r} is there twice; rename one")
        ours = {"id", "text", "label", "label_probs", "labels"} <= set(names)
        for cells in reader:
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if odd := _misfit(names, cells):
                raise InputError(
                    f"{path}: row {above + reader.line_num}: {odd} cells than the header has; quote cells that hold "
                    f"{delimiter!r} or a line break"
                )
            yield (
                above + reader.line_num,
                {name: unguarded(cell) if ours else cell for name, cell in zip(names, cells, strict=False) if name},
            )
    except csv.Error as error:
        raise InputError(f"{path}: row {above + reader.line_num}: not CSV ({error}); check the quotes") from None
    finally:
        csv.field_size_limit(limit)


def _misfit(names: Sequence[str], cells: Sequence[str]) -> str | None:
    """Whether a row has ``more`` or ``fewer`` cells than there are columns; ``None`` if it fits.

    Columns without a name are those that a spreadsheet left empty; only the first may hold something: row names.
    """
    if len(cells) > len(names) or any(cell for name, cell in zip(names[1:], cells[1:], strict=False) if not name):
        return "more"
    return "fewer" if any(names[len(cells) :]) else None


def _csv_lines(path: Path) -> Iterator[str]:
    """Lines for the CSV reader, whatever ends them."""
    for number, line in _lines(path):
        if "\0" in line:
            raise InputError(f"{path}: row {number}: holds a NUL byte; remove it")
        yield from re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", line)


def guarded(cell: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula; :func:`unguarded` gives back the original."""
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unguarded(cell: str) -> str:
    """The cell that :func:`guarded` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _iter_parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        there, names = file.schema_arrow.names, _class_names(file.schema_arrow.metadata or {})
        if twice := [name for name, count in Counter(there).items() if count > 1]:
            raise InputError(f"{path}: the column {twice[0]!r} is there twice; rename one")
        wanted = [name for name in there if columns is None or name in columns]
        unread = dict.fromkeys(there)
        for batch in file.iter_batches(batch_size=4096, columns=wanted):
            for record in batch.to_pylist():
                number += 1
                yield number, unread | {name: _named(value, names.get(name)) for name, value in record.items()}
    except InputError:
        raise
    except (pa.ArrowException, ValueError, LookupError, OverflowError) as error:
        raise InputError(f"{path}: damaged or no Parquet file ({' '.join(str(error).split())[:100]})") from None


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Class names by column, from what ``datasets`` notes about its ``ClassLabel`` columns in a Parquet file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, LookupError, AttributeError, RecursionError):
        return {}  # damaged notes are no reason to refuse the rows


def _named(value: Any, names: list[str] | None) -> Any:  # noqa: ANN401
    """A ``ClassLabel`` number as its name; -1, or any other number without a name, is a missing label."""
    if names is None:
        return value
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
