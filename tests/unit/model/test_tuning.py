"""Live settings: what can be typed, what it means, and what a pair is with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import make_spec

from coloctl import pairfile
from coloctl.errors import UsageError
from coloctl.model import tuning, units
from coloctl.model.pair import CheckpointMode
from coloctl.model.tuning import SETTINGS
from coloctl.model.view import settings_view

pytestmark = pytest.mark.unit

PAIR_FILE = """\
name = "web"
[guest]
memory = "512MiB"
kernel = "vmlinuz"
[[disk]]
id = "disk0"
image = { a = "a.qcow2", b = "b.qcow2" }
[node.a]
host = "netns:host-a"
address = "10.66.0.1"
[node.b]
host = "netns:host-b"
address = "10.66.0.2"
"""
ALL_SET = """\
[checkpoint]
delay_ms = 250
mode = "adaptive"
compare_timeout_ms = 400
expired_scan_cycle_ms = 50
max_queue_size = 4096
[policy]
mirror_rate = "50MiB"
"""

TYPED = {
    "checkpoint-delay": ("250ms", 250),
    "checkpoint-mode": ("adaptive", CheckpointMode.ADAPTIVE),
    "compare-timeout": ("400", 400),
    "expired-scan-cycle": ("50 ms", 50),
    "max-queue-size": ("4096", 4096),
    "mirror-rate": ("50MiB", 50 << 20),
}


def test_every_setting_has_its_own_field() -> None:
    assert len({(one.table, one.field) for one in SETTINGS.values()}) == len(SETTINGS)
    assert set(TYPED) == set(SETTINGS) == set(tuning.by_name(make_spec()))


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


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_its_own_field_of_the_pair_and_no_other(name: str) -> None:
    pair, (text, value) = make_spec(), TYPED[name]
    now = tuning.with_settings(pair, {name: text})
    assert tuning.by_name(now) == {**tuning.by_name(pair), name: value}
    assert tuning.with_settings(now, tuning.by_name(pair)) == pair != now
    one = SETTINGS[name]
    before, after = getattr(pair, one.table), getattr(now, one.table)
    assert replace(pair, **{one.table: replace(before, **{one.field: value})}) == now
    assert getattr(after, one.field) == value != getattr(before, one.field)


def test_a_pair_with_settings_is_the_pair_whose_file_has_them(tmp_path: Path) -> None:
    written = pairfile.parse(PAIR_FILE + ALL_SET, tmp_path)
    settings = {name: text for name, (text, _) in TYPED.items()}
    assert tuning.with_settings(pairfile.parse(PAIR_FILE, tmp_path), settings) == written


def test_a_delay_is_not_set_where_the_pair_chooses_it() -> None:
    fixed = make_spec()
    adaptive = tuning.with_settings(fixed, {"checkpoint-mode": "adaptive"})
    for before, settings in (
        (adaptive, {"checkpoint-delay": 500}),
        (fixed, {"checkpoint-delay": 500, "checkpoint-mode": "adaptive"}),
    ):
        with pytest.raises(UsageError, match="chooses its checkpoint-delay itself") as caught:
            tuning.changed(before, settings)
        command = f"set {fixed.name} checkpoint-mode=fixed checkpoint-delay=500"
        assert command in str(caught.value.hint)
    both = tuning.changed(adaptive, {"checkpoint-delay": 500, "checkpoint-mode": "fixed"})
    assert tuning.period(both) == (500, CheckpointMode.FIXED)


def test_a_view_tells_what_is_and_what_the_pair_file_says() -> None:
    seen = settings_view(tuning.with_settings(make_spec(), {"compare-timeout": 500}), make_spec())
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
