"""Rows in and out: CSV, JSON Lines, Parquet, plain text, and the row schema.

Reading streams: nothing here holds a file in memory. What a reader refuses, it refuses by file and row.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import math
import numbers
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inversedmixup.errors import PARTIAL, InputError, unfinished, write_whole
from inversedmixup.labels import JUDGES

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_CHARACTERS = 2000  # a longer text is no sentence: it is left out and counted
MAX_LABEL_CHARACTERS = 200  # a longer label is no class name: another column was meant
# bytes of an output's name: file systems hold 255, and the names made from it are longer
MAX_NAME = 255 - len(".config.json" + PARTIAL)
DELIMITERS = ",;\t|"
_EXCEL_MARK = re.compile(rf'"?sep=([{DELIMITERS}])"?\s*')  # a first line that says what parts cells
_PACKED = (".gz", ".zst", ".zip", ".xz", ".bz2")
_PACKED_BEGINS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # gzip, zstd, zip
_UNPACK = "is packed; unpack it first, and give the .jsonl, .csv, .parquet or .txt file that is in it"
# What a spreadsheet would run as a formula: CSV output puts an apostrophe before it (and before an apostrophe that
# precedes it, so that reading can take one away again). Numbers are no formulas.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NOT_TEXT = "not a text"
MISSING_WORDS = ("NA", "N/A", "nan", "NaN", "null", "NULL", "None")  # what programs write for a missing label
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled sentence; ``id`` is its id column or else its row number, counted from 0."""

    id: str
    text: str
    label: str


SOURCES = ("soft", *JUDGES, "agreement", "pool")  # of labels


@dataclasses.dataclass
class Row:
    """One augmented sentence and everything known about it.

    Attributes:
        id: ``aug-`` and the row's number in the stream of pairs.
        text: the sentence.
        label: the chosen label (by the label policy).
        label_probs: probability of each class under the label policy.
        parents: ids of the two source rows.
        lam: mixing ratio λ, the weight of the first parent.
        lam_realised: λ̂, where the re-read text projects on the segment between the parents, in [0, 1].
        cycle_similarity: cosine between the re-read text and the mixed embedding.
        fluency: mean token log-likelihood under the LLM without soft tokens, in nats.
        labels: what each of :data:`SOURCES` says: the interpolated label, the judges, their agreement and pool
            (``None`` for a judge that was not asked or abstained).
        intruded: whether the judge of the label policy contradicts interpolation (see ``labels.is_intruded``); the task
            model speaks where there is no judge or it abstained.
        seed: the run's seed.
        kept: whether the gate let it through.
        reject_reason: why not; ``None`` if kept.
    """

    id: str
    text: str
    label: str
    label_probs: dict[str, float]
    parents: list[str]
    lam: float
    lam_realised: float
    cycle_similarity: float
    fluency: float
    labels: dict[str, str | None]
    intruded: bool
    seed: int
    kept: bool = True
    reject_reason: str | None = None


@dataclasses.dataclass
class LabelledText:
    """A sentence of the user's that judges have labelled.

    Attributes:
        id: its id column or else its row number, counted from 0.
        text: the sentence.
        label: the likeliest class under the label policy; empty if no judge answered.
        confidence: its probability as the judges say it, before ``--label-temperature``; 0 if none answered.
        label_probs: probability of each class under the label policy.
        labels: what each judge names, and their ``agreement`` and ``pool`` (``None`` where one abstained).
        reject_reason: why it is not to be trained on; ``None`` if it is.
    """

    id: str
    text: str
    label: str
    confidence: float
    label_probs: dict[str, float]
    labels: dict[str, str | None]
    reject_reason: str | None = None


# ---- reading -------------------------------------------------------------------------------------------------


def iter_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(row number, record)`` for each row of a .jsonl, .csv, .parquet or .txt file; .txt gives ``{"text": line}``.

    Row numbers are those an editor shows: lines of a text file from 1, with the header counted.

    Raises:
        InputError: naming the file, the row and the remedy.
    """
    path = Path(path).expanduser()
    readers = {".jsonl": _iter_jsonl, ".csv": _iter_csv, ".parquet": _iter_parquet, ".txt": _iter_txt}
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
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: row {number}: not JSON ({error}); each line must be one object") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {number}: expected an object, found {type(record).__name__}")
        yield number, record


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
                {name: _unguarded(cell) if ours else cell for name, cell in zip(names, cells, strict=False) if name},
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


def _guarded(cell: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula; :func:`_unguarded` gives back the original."""
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _unguarded(cell: str) -> str:
    """The cell that :func:`_guarded` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _iter_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        names = _class_names(file.schema_arrow.metadata or {})
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield number, {column: _named(value, names.get(column)) for column, value in record.items()}
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


def unusable(text: str) -> str | None:
    """Why a text cannot be a sentence here; ``None`` if it can."""
    if len(text) > MAX_CHARACTERS:
        return f"text over {MAX_CHARACTERS} characters"
    return _unwritable(text)


def _unwritable(text: str) -> str | None:
    """The reason if a text holds what not every file can."""
    if "\0" in text:
        return "a NUL character"
    return "half a character (a lone surrogate)" if LONE_SURROGATE.search(text) else None


def iter_texts(paths: Sequence[str | Path], text_column: str = "text", *, log: bool = False) -> Iterator[str]:
    """The texts of unlabelled files, one after the other; what can be no sentence is passed over.

    With ``log``, how many were is logged at the end of each file.
    """
    for path in paths:
        for text, _ in iter_sourced(path, text_column, log=log):
            yield text


def iter_sourced(path: str | Path, text_column: str = "text", *, log: bool = True) -> Iterator[tuple[str, str | None]]:
    """The texts of one file as :func:`iter_texts` gives them, each with its ``source`` column if there is one."""
    column, left_out = _text_column(path, text_column), _LeftOut()
    for number, record in iter_records(path):
        value = _column(record, column, path, number, "--text-column")
        if reason := _no_sentence(value):
            left_out.add(reason, number)
        else:
            source = record.get("source")
            yield " ".join(value.split()), None if source is None else str(source)
    if log:
        left_out.log(path)


def check_texts(path: str | Path, text_column: str) -> None:
    """Refuse a file of unlabelled text without a usable row.

    Raises:
        InputError: naming the file.
    """
    if next(iter_texts([path], text_column, log=True), None) is None:
        raise InputError(f"{path}: no usable row; every row needs a text")


def _no_sentence(value: Any) -> str | None:  # noqa: ANN401
    """Why a value of the text's column cannot be a sentence; ``None`` if it can."""
    if isinstance(value, str):
        return unusable(value) if value.strip() else "empty text"
    return "empty text" if label_name(value) is None else NOT_TEXT


def _is_txt(path: str | Path) -> bool:
    return str(path).lower().endswith(".txt")


def _text_column(path: str | Path, name: str) -> str:
    """The text's column; lines of a .txt file are texts, whatever that of other files is called."""
    return "text" if _is_txt(path) else name


def _column(record: dict[str, Any], name: str, path: str | Path, row: int, flag: str) -> Any:  # noqa: ANN401
    if name not in record:
        found = ", ".join(map(str, record)) or "none"
        raise InputError(
            f"{path}: row {row}: no column {name!r} (found: {found}); choose one with {flag}, which is for every file, "
            f"or rename it here"
        )
    return record[name]


def label_name(value: Any) -> str | None:  # noqa: ANN401
    """A label as a string, the same for 1, 1.0 and "1"; ``None`` for a missing one."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value) == "<NA>":
        return None  # <NA> is pandas' missing value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return " ".join(str(value).split()) or None


def read_examples(path: str | Path, *, text_column: str = "text", label_column: str = "label") -> list[Example]:
    """Labelled rows of a file; see :func:`iter_examples`."""
    return list(iter_examples(path, text_column=text_column, label_column=label_column))


def iter_examples(path: str | Path, *, text_column: str = "text", label_column: str = "label") -> Iterator[Example]:
    """Labelled rows of a file, one by one. Empty, overlong or unlabelled rows are left out, counted and logged.

    Raises:
        InputError: for a file, column or row that cannot be read, or if nothing is left.
    """

    def rows() -> Iterator[tuple[int, Any, Any, Any]]:
        for number, record in iter_records(path):
            text = _column(record, text_column, path, number, "--text-column")
            label = _column(record, label_column, path, number, "--label-column")
            yield number, record.get("id"), text, label

    return checked_examples(rows(), str(path))


def iter_unlabelled(path: str | Path, *, text_column: str = "text") -> Iterator[Example]:
    """Rows of a file that are to be labelled, one by one, with empty labels; see :func:`iter_examples`.

    A line of a .txt file has its number, counted from 0, as its id.
    """
    lines, column = _is_txt(path), _text_column(path, text_column)

    def rows() -> Iterator[tuple[int, Any, Any, Any]]:
        for number, record in iter_records(path):
            text = _column(record, column, path, number, "--text-column")
            yield number, number - 1 if lines else record.get("id"), text, None

    return checked_examples(rows(), str(path), labelled=False)


def checked_examples(
    rows: Iterable[tuple[int, Any, Any, Any]], origin: str, *, labelled: bool = True
) -> Iterator[Example]:
    """Examples from ``(row number, id, text, label)``; see :func:`iter_examples`. Or with empty labels."""
    left_out, doubtful, first = _LeftOut(), Counter[str](), None
    for index, (number, identity, text, label) in enumerate(rows):
        name = _checked_label(label, f"{origin}: row {number}") if labelled else ""
        given = label_name(identity) is not None
        reason = _no_sentence(text)
        if reason == NOT_TEXT:
            raise InputError(f"{origin}: row {number}: the text is a {type(text).__name__}, not a string")
        if reason or (reason := _unwritable(f"{identity}{name}")):
            left_out.add(reason, number)
        elif name is None:
            left_out.add("no label", number)
        else:
            first = first or (number, given)
            if given != first[1]:
                lacks, has = (first[0], number) if given else (number, first[0])
                raise InputError(
                    f"{origin}: row {lacks}: has no id, but row {has} has one; give every row one, or rename the "
                    f"column 'id'"
                )
            if name in MISSING_WORDS:
                doubtful[name] += 1
            yield Example(str(identity if given else index), " ".join(text.split()), name)
    left_out.log(origin)
    for name, count in doubtful.items():
        logger.warning("%s: %d row(s) have the label %r; if that stands for none, remove them", origin, count, name)
    if first is None:
        raise InputError(f"{origin}: no usable row; every row needs a text{' and a label' if labelled else ''}")


class _LeftOut:
    """How many rows were left out, by reason, and the first few of them."""

    def __init__(self) -> None:
        self.count, self.first = Counter[str](), dict[str, list[int]]()

    def add(self, reason: str, row: int) -> None:
        self.count[reason] += 1
        if self.count[reason] <= 5:
            self.first.setdefault(reason, []).append(row)

    def log(self, origin: str | Path) -> None:
        for reason, count in self.count.items():
            rows = ", ".join(map(str, self.first[reason])) + (", …" if count > 5 else "")
            logger.warning("%s: %d row(s) left out, %s: row %s", origin, count, reason, rows)


def _checked_label(label: Any, where: str) -> str | None:  # noqa: ANN401
    """The name of a label; ``None`` for a missing one.

    Raises:
        InputError: for what is no label: a list, bytes, a date, a whole text.
    """
    name = label_name(label)
    if name is not None and not isinstance(label, str | numbers.Number | np.generic):
        raise InputError(f"{where}: the label is a {type(label).__name__}, not a name or a number")
    if name is not None and len(name) > MAX_LABEL_CHARACTERS:
        raise InputError(f"{where}: the label has {len(name)} characters; is --label-column the right one?")
    return name


def iter_rows(path: str | Path) -> Iterator[Row]:
    """Augmented rows of a file that :class:`RowFile` wrote.

    Raises:
        InputError: for a file that cannot be read or holds other columns.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(Row)}
    for number, record in iter_records(path):
        if str(path).lower().endswith(".csv"):
            record = {name: _from_cell(value, str(kinds.get(name, "str"))) for name, value in record.items()}
        try:
            row = Row(**record)
            whole = _is_whole(row)
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise InputError(f"{path}: row {number}: not a row that `augment` wrote; give the file as it was")
        yield row


def _is_whole(row: Row) -> bool:
    """Whether the fields that every reader counts on hold what they should."""
    if not (isinstance(row.parents, list) and len(row.parents) == 2 and isinstance(row.label_probs, dict)):
        return False
    texts = [row.id, row.text, row.label, *row.parents]
    scores = [row.lam, row.lam_realised, row.cycle_similarity, *row.label_probs.values()]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(score, int | float) for score in scores)
        and 0 <= row.lam <= 1
    )


def _from_cell(value: str, kind: str) -> Any:  # noqa: ANN401
    """A value of a CSV cell, by the type that :class:`Row` declares for it; the inverse of :func:`_cell`."""
    if kind.startswith("str"):
        return value or (None if "None" in kind else "")
    if kind == "bool":
        return value.lower() == "true"  # a spreadsheet writes TRUE
    if not value:
        return None  # the fluency of a repeated original
    try:
        return json.loads(value)
    except ValueError:
        return value


# ---- writing -------------------------------------------------------------------------------------------------


def check_output(path: str | Path) -> Path:
    """The output path, if its suffix says how to write it, its name is short enough and its folder can be made.

    Raises:
        InputError: otherwise.
    """
    path = Path(path).expanduser()
    if LONE_SURROGATE.search(str(path)):
        raise InputError(f"output {str(path)!r}: the name is not UTF-8; choose another")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output {path}: cannot tell the format; end it in {', '.join(SUFFIXES)}")
    if (size := len(os.fsencode(path.name))) > MAX_NAME:
        raise InputError(f"output {path}: the name has {size} bytes; choose one of at most {MAX_NAME}")
    try:
        if path.is_dir():
            raise InputError(f"output {path}: is a folder; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {path}: its folder cannot be made ({error.strerror})") from error
    return path


class RowFile:
    """A file of rows, written one by one and swapped in whole at the end; its suffix says how.

    In CSV, nested values are JSON text, and a cell that a spreadsheet would run as a formula begins with an apostrophe,
    which reading the file here takes away again.

    Args:
        path: .jsonl, .csv or .parquet.
        classes: class names.
        kind: whose fields the rows have.
    """

    BATCH = 4096  # rows of a Parquet row group

    def __init__(self, path: Path, classes: Sequence[str], kind: type[Row] | type[LabelledText] = Row) -> None:
        self.path, self.partial = path, unfinished(path)
        self.suffix = path.suffix.lower()
        self._waiting: list[dict[str, Any]] = []
        if self.suffix == ".parquet":
            import pyarrow.parquet as pq

            self._schema = _schema(classes, kind)
            self._table = pq.ParquetWriter(self.partial, self._schema)
        else:
            self._file = self.partial.open("w", encoding="utf-8", newline="" if self.suffix == ".csv" else "\n")
            if self.suffix == ".csv":
                self._csv = csv.DictWriter(self._file, fieldnames=[f.name for f in dataclasses.fields(kind)])
                self._csv.writeheader()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if self.suffix == ".parquet":
                if kind is None:
                    self._flush()
                self._table.close()
            else:
                self._file.close()
            if kind is None:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row of the schema."""
        if self.suffix == ".jsonl":
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        elif self.suffix == ".csv":
            self._csv.writerow({name: _cell(value) for name, value in row.items()})
        else:
            self._waiting.append(row)
            if len(self._waiting) == self.BATCH:
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._table.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting.clear()


def write_jsonl(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write any records as JSON Lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return _guarded(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _schema(classes: Sequence[str], kind: type[Row] | type[LabelledText]) -> Any:  # noqa: ANN401 (pyarrow.Schema)
    """Arrow types of a kind of row, so that an empty or all-null column still has its type."""
    import pyarrow as pa

    text, real, flag = pa.string(), pa.float64(), pa.bool_()
    types = {
        "id": text, "text": text, "label": text,
        "label_probs": pa.struct([(name, real) for name in classes]),
        "parents": pa.list_(text), "lam": real, "lam_realised": real, "cycle_similarity": real, "fluency": real,
        "confidence": real, "labels": pa.struct([(source, text) for source in SOURCES]),
        "intruded": flag, "seed": pa.int64(), "kept": flag, "reject_reason": text,
    }  # fmt: skip
    return pa.schema([(field.name, types[field.name]) for field in dataclasses.fields(kind)])
