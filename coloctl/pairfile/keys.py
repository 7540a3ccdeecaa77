"""Make the tables of a pair file from the classes of `model.pair`: keys, defaults, bounds, texts.

Called by `pairfile.tables`; finds the bounds of a field as `model.bounds` defines them. A table
declares only what a file writes in another way than the model holds it: ``memory = "512MiB"``
becomes ``memory_mib``. Each other field of the class is a key of the table without a line there.

Invariant: a value that was read has the type that its field has in the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

import pydantic
from pydantic import AfterValidator, BaseModel, create_model

from coloctl.fieldtexts import field_texts
from coloctl.model.bounds import between
from coloctl.pairfile import values

T = TypeVar("T", bound=BaseModel)


def keys_of(
    owner: type[Any], *, renamed: Mapping[str, str] | None = None, without: Collection[str] = ()
) -> Callable[[type[T]], type[T]]:
    """Add the fields of ``owner``, a dataclass of `model.pair` or `model.tls`, to a table, as keys.

    ``renamed`` has the key of a field by its name, where they differ. Fields in ``without`` are no
    keys. A field that the table declares is read by the type there. One that it declares with a
    default stays as it is.
    """

    def complete(table: type[T]) -> type[T]:
        types = inspect.get_annotations(table, eval_str=True)
        own = {name: info for name, info in table.model_fields.items() if not info.is_required()}
        hints, called = get_type_hints(owner, include_extras=True), renamed or {}
        keys: dict[str, Any] = {
            one.name: (
                types.get(one.name) or _as_written(hints[one.name]),
                _described(owner, one, called.get(one.name)),
            )
            for one in fields(owner)
            if one.name not in {*own, *without}
        }
        keys |= {name: (types[name], info) for name, info in own.items()}
        made = create_model(
            table.__name__,
            __base__=table.__base__,
            __doc__=owner.__doc__,
            # Each key has its text already: looking for a source file that is not there takes long.
            __cls_kwargs__={"use_attribute_docstrings": False},
            **keys,
        )
        return cast("type[T]", made)

    return complete


def _as_written(hint: Any) -> Any:
    """Return the type by which a key is read so that its value is of the type ``hint``."""
    literal: Any = Literal
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return Annotated[literal[tuple(str(word) for word in hint)], AfterValidator(_member(hint))]
    if hint == Path | None:
        return Annotated[str, AfterValidator(values.path)] | None
    if limits := between(hint):
        return Annotated[hint, pydantic.Field(ge=limits.ge, le=limits.le)]
    return hint


def _member(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    """Return a function that reads a word of ``kind``.

    The class itself will not do: from Python 3.12 on pydantic does not understand its signature.
    """

    def read(word: str) -> StrEnum:
        return kind(word)

    return read


def _described(owner: type[Any], one: Field[Any], alias: str | None) -> Any:
    """Return default, text and name of the key of one field."""
    default = ... if one.default is MISSING else one.default
    return pydantic.Field(default, alias=alias, description=field_texts(owner).get(one.name))
