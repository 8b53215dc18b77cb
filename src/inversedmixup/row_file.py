"""Files of rows that are made here: written row by row and swapped in whole, and read again."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inversedmixup.data import LONE_SURROGATE
from inversedmixup.errors import PARTIAL, InputError, local_path, unfinished, write_whole
from inversedmixup.files import guarded, iter_records
from inversedmixup.outputs import remember
from inversedmixup.schema import SOURCES, LabelledText, Row

SUFFIXES = (".jsonl", ".csv", ".parquet")
# bytes of an output's name: file systems hold 255, and the names made from it are longer
MAX_NAME = 255 - len(".config.json" + PARTIAL)


def check_output(path: str | Path) -> Path:
    """The output path, if its suffix says how to write it, its name is short enough and its folder can be made.

    Raises:
        InputError: otherwise.
    """
    path = local_path(path)
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
        made: where it is recorded what was put there, see :func:`~inversedmixup.outputs.remember`.
    """

    BATCH = 4096  # rows of a Parquet row group

    def __init__(
        self, path: Path, classes: Sequence[str], kind: type[Row] | type[LabelledText] = Row, made: Path | None = None
    ) -> None:
        self.path, self.partial, self.made = path, unfinished(path), made
        self.suffix = path.suffix.lower()
        self._waiting: list[dict[str, Any]] = []
        if self.suffix == ".parquet":
            import pyarrow.parquet as pq

            self._schema = arrow_schema(classes, kind)
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
                if self.made is not None:
                    remember(self.made, self.partial, self.path)
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
        return guarded(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def arrow_schema(classes: Sequence[str], kind: type[Row] | type[LabelledText]) -> Any:  # noqa: ANN401
    """Arrow types of a kind of row (a ``pyarrow.Schema``), so that an empty or all-null column still has its type."""
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
