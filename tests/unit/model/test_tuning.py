"""Live settings: what can be typed, what it means, and what a pair is with it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from support.fakes import make_spec

from coloctl import pairfile
from coloctl.errors import UsageError
from coloctl.model import tuning, units
from coloctl.model.pair import CheckpointMode
from coloctl.model.tuning import SETTINGS, Tuning
from coloctl.model.view import settings_view

pytestmark = pytest.mark.unit

TYPED = {
    "checkpoint-delay": ("250ms", 250),
    "checkpoint-mode": ("adaptive", CheckpointMode.ADAPTIVE),
    "compare-timeout": ("400", 400),
    "expired-scan-cycle": ("50 ms", 50),
    "max-queue-size": ("4096", 4096),
    "mirror-rate": ("50MiB", 50 << 20),
}


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    assert {one.field for one in SETTINGS.values()} == {field.name for field in fields(Tuning)}
    assert set(TYPED) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_read_and_told(name: str) -> None:
    text, value = TYPED[name]
    assert tuning.read(name, text) == tuning.read(name, value) == value
    assert tuning.read(name, SETTINGS[name].example)
    assert tuning.words(name, tuning.read(name, text))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1.5", "0x10", "٣", "9" * 30, None, True, [1], 1.5]
)
def test_what_no_setting_can_be(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} must be ") as caught:
        tuning.read(name, value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["checkpoint-delay", "compare-timeout", "max-queue-size"])
def test_only_a_rate_may_be_nothing(name: str) -> None:
    with pytest.raises(UsageError):
        tuning.read(name, 0)
    assert tuning.read("mirror-rate", 0) == 0
    assert tuning.words("mirror-rate", 0) == "unlimited"


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="'speed' is no setting") as caught:
        tuning.read("speed", 1)
    assert "mirror-rate" in str(caught.value.hint)


def test_limits_are_those_of_the_pair_file() -> None:
    schema = pairfile.json_schema()["$defs"]["CheckpointTable"]["properties"]
    for name, one in SETTINGS.items():
        if one.field in schema and "maximum" in schema[one.field]:
            most = schema[one.field]["maximum"]
            assert tuning.read(name, most) == most
            with pytest.raises(UsageError):
                tuning.read(name, most + 1)


def test_a_pair_with_settings_is_the_pair_whose_file_has_them() -> None:
    pair = make_spec()
    now = Tuning.of(pair).changed({name: text for name, (text, _) in TYPED.items()
                                   if name != "checkpoint-delay"}, "web")  # fmt: skip
    assert Tuning.of(now.applied(pair)) == now
    assert Tuning.of(pair).applied(now.applied(pair)) == pair
    assert now.applied(pair).policy.mirror_rate == 50 << 20


def test_a_delay_is_not_set_where_the_pair_chooses_it() -> None:
    adaptive = replace(Tuning(), mode=CheckpointMode.ADAPTIVE)
    for before, settings in (
        (adaptive, {"checkpoint-delay": 500}),
        (Tuning(), {"checkpoint-delay": 500, "checkpoint-mode": "adaptive"}),
    ):
        with pytest.raises(UsageError, match="chooses its checkpoint-delay itself") as caught:
            before.changed(settings, "web")
        assert "set web checkpoint-mode=fixed checkpoint-delay=500" in str(caught.value.hint)
    both = adaptive.changed({"checkpoint-delay": 500, "checkpoint-mode": "fixed"}, "web")
    assert (both.delay_ms, both.mode) == (500, CheckpointMode.FIXED)


def test_a_view_tells_what_is_and_what_the_pair_file_says() -> None:
    now = replace(Tuning(), compare_timeout_ms=500)
    seen = settings_view(now, Tuning())
    assert {name for name, one in seen.items() if one.value != one.pair_file} == {"compare-timeout"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1, "1 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1536 MiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes_with_one_decimal(count: int, text: str) -> None:
    assert units.about(count) == text


@pytest.mark.parametrize("text", ["5", "MiB", "5 mib", "5.5MiB", "-5MiB", ""])
def test_what_is_no_size(text: str) -> None:
    assert units.bytes_of(text) is None
