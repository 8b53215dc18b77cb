"""One dataclass per command: the same names as flags, YAML keys and keyword arguments.

A field made with :func:`option` carries its help text, so ``--help``, the YAML file and the signature cannot
drift apart. Precedence: defaults, then ``--config FILE.yaml``, then flags. Each field also says what it decides of a
run that is taken up again: see :data:`WORK`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import types
import typing
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inversedmixup.errors import InputError, local_path

T = TypeVar("T", bound="Options")

# What an option decides. WORK: what is made, so that a run with another value is another run. CHOICE: what is taken of
# it, or measured with it, so that finished work serves another value too. NOTHING: speed, memory, where things lie.
WORK, CHOICE, NOTHING = "work", "choice", "nothing"


def option(default: Any, help: str, *, choices: Sequence[str] | None = None, decides: str = WORK) -> Any:  # noqa: ANN401 (any field type)
    """A dataclass field with a help text, what it decides and, if given, the only values it accepts."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "decides": decides})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every class of options: whoever makes one, from a file, flags or Python, its values are checked.

    A ``__post_init__`` of a subclass calls that of its bases first, and may rely on types and choices.

    Raises:
        InputError: for a value of the wrong type or outside the choices, naming the option.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            kind = hints[field.name]
            value = _coerce(field.name, getattr(self, field.name), _base_type(kind), isinstance(kind, types.UnionType))
            choices = field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise InputError(f"{field.name}: {value!r} is not one of {', '.join(choices)}")
            object.__setattr__(self, field.name, value)  # as a frozen dataclass does it itself


def deciding(config: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 (any config)
    """The settings that decide this; a field that is no option decides the work."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata.get("decides", WORK) == what
    }


def _base_type(annotation: Any) -> Any:  # noqa: ANN401
    """``int | None`` → ``int``; anything else as it is."""
    if isinstance(annotation, types.UnionType):
        return next(a for a in annotation.__args__ if a is not types.NoneType)
    return annotation


def add_arguments(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one flag per :func:`option` field of ``config``; an absent flag stays absent (no default).

    Flags stand together by the class that introduces them, under its ``GROUP``; those of one without stand first.
    """
    hints, groups = typing.get_type_hints(config), dict[str | None, Any]({None: parser})
    for field in _by_group(config):
        group = _group(config, field.name)
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        into = groups[group]
        flag = "--" + field.name.replace("_", "-")
        kind, text = _base_type(hints[field.name]), field.metadata["help"].replace("%", "%%")
        if kind is bool:
            into.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                help=f"{text} (default: {'yes' if field.default else 'no'})",
            )  # fmt: skip
            continue
        shown = "" if field.default is None else f" (default: {field.default})"
        into.add_argument(
            flag, type=kind, choices=field.metadata["choices"], default=argparse.SUPPRESS,
            metavar=None if field.metadata["choices"] else kind.__name__.upper(), help=text + shown,
        )  # fmt: skip


def _introduces(config: type, name: str) -> type:
    """The class that has a field first; those between it and ``config`` give it other defaults."""
    return [owner for owner in config.__mro__ if name in inspect.get_annotations(owner)][-1]


def _group(config: type, name: str) -> str | None:
    return _introduces(config, name).__dict__.get("GROUP")


def _by_group(config: type) -> list[dataclasses.Field[Any]]:
    """The options: those of no group, then group by group as the classes stand in the definition of ``config``."""
    order = list(config.__mro__)
    fields = [field for field in dataclasses.fields(config) if "help" in field.metadata]
    return sorted(
        fields, key=lambda f: (_group(config, f.name) is not None, order.index(_introduces(config, f.name)))
    )  # fmt: skip


def read_yaml(path: str | Path, flag: str, *, as_text: bool = False) -> dict[str, Any]:
    """The ``name: value`` lines of the YAML file that ``flag`` gives, names spelt as those of labels are (NFC).

    With ``as_text``, ``yes`` and ``1`` are words.
    """
    import yaml

    try:
        words = local_path(path).read_text(encoding="utf-8")
        loader = yaml.BaseLoader(words) if as_text else yaml.SafeLoader(words)
        node = loader.get_single_node()
        names = [_composed(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        loaded = None if node is None else loader.construct_document(node)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{flag} {path}: not valid YAML ({' '.join(str(error).split())})") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{flag} {path}: expected `name: value` lines, found a {type(loaded).__name__}")
    _check_once(names, f"{flag} {path}")
    return {_composed(key): value for key, value in loaded.items()}


def _composed(name: Any) -> str:  # noqa: ANN401 (a key of YAML)
    return unicodedata.normalize("NFC", str(name))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML config file, with dashes in names read as underscores."""
    given = {name: (name.replace("-", "_"), value) for name, value in read_yaml(path, "--config").items()}
    _check_once([name for name, _ in given.values()], f"--config {path}")
    return dict(given.values())


def _check_once(names: Sequence[str], where: str) -> None:
    """Refuse a name that is there twice: one of its values would be lost."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{where}: {name!r} is there twice; leave one out")


def _coerce(name: str, value: Any, kind: Any, optional: bool) -> Any:  # noqa: ANN401
    if value is None and optional:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if optional and isinstance(value, str) and not value:
        raise InputError(f"{name}: is empty; give a value, or leave the option away")
    if kind is float and isinstance(value, str):  # 5e-5 without a point is a text to YAML
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if kind is str and isinstance(value, int | float | Path) and not isinstance(value, bool):
        return str(value)  # `lam: 0.5` in YAML is the policy "0.5"
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise InputError(f"{name}: expected {kind.__name__}, found {_clipped(value)}")
    if kind in (int, float) and not abs(value) < 2**63:  # neither endless, nor more than torch can count
        raise InputError(f"{name}: {_clipped(value)} is out of range")
    return value


def _clipped(value: Any) -> str:  # noqa: ANN401
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def at_least(config: Any, least: float, *names: str) -> None:  # noqa: ANN401 (any config)
    """Refuse options below a bound.

    Raises:
        InputError: naming the option, its value and the bound.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise InputError(f"{name} {value}: must be at least {least}")


def check_known(config: type, names: Iterable[str], where: str = "") -> None:
    """Refuse options that a config does not have.

    Args:
        config: the dataclass.
        names: of options.
        where: what the message begins with.

    Raises:
        InputError: naming one, and what is like it.
    """
    fields = [field.name for field in dataclasses.fields(config) if "help" in field.metadata]  # others are no options
    if unknown := sorted(set(names) - set(fields)):
        like = difflib.get_close_matches(unknown[0], fields, n=3)
        meant = f"did you mean {' or '.join(like)}?" if like else f"known: {', '.join(sorted(fields))}"
        raise InputError(f"{where}unknown option {unknown[0]!r}; {meant}")


def build(config: type[T], *sources: dict[str, Any]) -> T:
    """A ``config`` of these values; later sources win.

    Raises:
        InputError: for an unknown name, a value of the wrong type or outside the choices.
    """
    merged = {key: value for source in sources for key, value in source.items()}
    check_known(config, merged)
    return config(**merged)
