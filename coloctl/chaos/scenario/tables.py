"""Define what all tables of a scenario file have: exact keys, spans, keys of a kind, complaints.

Called by `chaos.scenario.values`, which defines each table; `Params` is the base of the keys of
each kind in `chaos.faults`, `chaos.workloads` and `chaos.checks`. Calls `pairfile.complaints` to
word mistakes.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import InitErrorDetails

from coloctl.pairfile.complaints import from_validation
from coloctl.pairfile.values import complaint


def _span(value: object) -> tuple[float, float]:
    """Return a number as a span, and check that the first of two is not the greater."""
    ends = value if isinstance(value, list | tuple) else [value] * 2
    match [float(n) for n in ends if isinstance(n, int | float) and not isinstance(n, bool)]:
        case [low, high] if len(ends) == 2:
            pass
        case _:
            raise complaint("This must be a number of seconds, or two: [2.0, 5.0].")
    if not 0 <= low <= high:
        raise complaint(
            f"[{low:g}, {high:g}] is no span of time.", "the smaller number comes first"
        )
    return low, high


#: A place in a table, a sentence about it, and a hint.
Complaint = tuple[tuple[int | str, ...], str, str | None]
#: A number of seconds, or two between which the seed chooses.
Span = Annotated[
    tuple[float, float], BeforeValidator(_span, json_schema_input_type=float | list[float])
]


class Params(BaseModel):
    """The keys of one kind of fault, workload or check, besides those that all of them have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def of(cls, given: Params) -> Self:
        """Return ``given`` as the keys of this kind; a bare `Params` stands for the defaults."""
        made = cls() if type(given) is Params else given
        assert isinstance(made, cls), f"{type(made).__name__} are the keys of another kind"
        return made


class ScenarioTable(BaseModel):
    """A table: exact types, no key that is not listed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
    )


class OfKind(ScenarioTable):
    """A table that has the keys of its kind besides its own: they become its ``params``.

    A file is read in the context of all registered kinds, by what they are kinds of.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})
    what: ClassVar[str]

    params: SkipJsonSchema[SerializeAsAny[Params]] = Field(default_factory=Params, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        """Separate the keys of the kind, as a file has them, and check them."""
        if info.context is None or not isinstance(given, dict):
            return given
        keys = {name for name, one in cls.model_fields.items() if not one.exclude}
        own = {key: value for key, value in given.items() if key in keys}
        rest = {key: value for key, value in given.items() if key not in keys}
        refuse(cls.complete(own, rest, info.context[cls.what]))
        return own

    @classmethod
    def complete(
        cls, own: dict[str, Any], rest: Mapping[str, Any], kinds: Mapping[str, Any]
    ) -> Iterator[Complaint]:
        """Add the ``params`` to the table's own keys, made of the rest by one of ``kinds``."""
        kind = own.get("kind", cls.model_fields["kind"].default)
        if kind == "" and cls.what == "fault":
            own["params"] = yield from read_params(Params, "random faults", rest)
        elif isinstance(kind, str) and kind not in kinds:
            yield unlike(("kind",), f"There is no {cls.what} called", kind, kinds)
        elif isinstance(kind, str):  # otherwise the table itself complains
            own["params"] = yield from read_params(kinds[kind].params, f"{cls.what} {kind}", rest)

    @model_serializer(mode="wrap")
    def _written(self, own: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write all keys side by side, as a file has them."""
        return {**own(self), **self.params.model_dump(mode="json", exclude_none=True)}


def read_params(
    kind: type[Params], what: str, given: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Generator[Complaint, None, Params]:
    """Return the checked keys of one kind, after a complaint for each that is wrong."""
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        for one in from_validation(error, kind, what):
            yield (*place, one.key), one.sentence, one.hint
        return Params()


def refuse(found: Iterable[Complaint]) -> None:
    """Raise the complaints that were found, if any."""
    errors = [
        InitErrorDetails(type=complaint(sentence, hint), loc=place, input=None)
        for place, sentence, hint in found
    ]
    if errors:
        raise ValidationError.from_exception_data("scenario", errors)


def unlike(
    place: tuple[int | str, ...], sentence: str, name: str, known: Iterable[str]
) -> Complaint:
    """Build a complaint about a name that is none of those known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "there is " + (", ".join(known) or "none")
    return place, f'{sentence} "{name}".', hint


def refuse_twice(names: Iterable[str]) -> None:
    """Refuse names that are given more than once."""
    twice = (name for name, count in Counter(names).items() if count > 1)
    refuse(((), f'Two are called "{name}".', "give each a name of its own") for name in twice)
