"""Bridge ports as iproute2 describes them; the documents are those of real devices, shortened."""

from __future__ import annotations

import pytest

from coloctl.colo.bridgeport import forwards, silent_s

pytestmark = pytest.mark.unit


def port(state: str) -> dict[str, object]:
    data = {"info_kind": "tun", "info_slave_kind": "bridge", "info_slave_data": {"state": state}}
    return {"ifname": "tap-b", "master": "br0", "linkinfo": data}


@pytest.mark.parametrize("state", ["disabled", "listening", "learning", "blocking"])
def test_a_port_in_any_other_state_than_forwarding_swallows_frames(state: str) -> None:
    assert not forwards(port(state))


def test_a_forwarding_port_and_a_device_without_a_bridge_pass_frames_on() -> None:
    assert forwards(port("forwarding"))
    assert forwards({"ifname": "tap-b", "linkinfo": {"info_kind": "tun"}})
    assert forwards({})


def test_stp_silences_a_port_for_twice_the_forward_delay() -> None:
    described = {"info_kind": "bridge", "info_data": {"forward_delay": 1500, "stp_state": 1}}
    assert silent_s({"linkinfo": described}) == 30.0
    described["info_data"] = {"forward_delay": 1500, "stp_state": 0}
    assert silent_s({"linkinfo": described}) == 0.0
    assert silent_s({}) == 0.0
