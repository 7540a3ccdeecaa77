"""Build the filters of colo-proxy, as ``-object`` and ``object-add`` take them.

::

    primary     client -> tap -> m0 (copy to the secondary) -> guest
                guest -> redire1 -> comp0 (compare, release) -> redire0 -> tap -> client
    secondary   copy from m0 -> f1 -> rew0 (sequence numbers) -> guest -> rew0 -> f2 -> comp0

Called by `machine.cmdline` for a secondary that starts, by `colo.plan` for a QEMU that runs, and by
`colo.retune`. A filter's ``queue`` is named from the netdev's side: ``tx`` is towards the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coloctl.machine.chardev import suffixed
from coloctl.model.pair import NicSpec, PairSpec

Properties = Mapping[str, Any]


def has_vnet_header(nic: NicSpec) -> bool:
    """Return whether frames on this netdev carry a virtio-net header.

    Filters and comparison must then all be set to it; one that is not reads the header as Ethernet.
    Only a tap under a virtio-net device has it: `machine.cmdline` sets ``vnet_hdr`` of every tap.
    """
    return nic.tap is not None and nic.model.startswith("virtio-net")


def primary_filters(
    spec: PairSpec, nic_index: int, *, status: bool, behind_rewriter: bool = False
) -> tuple[Properties, ...]:
    """Build m0, redire0, redire1, iothread1 and comp0 in creation order.

    ``status`` is that of the three filters. They are off in a QEMU without COLO: colo-compare
    releases no packet before the first checkpoint, so the guest would fall silent.
    ``behind_rewriter``: this QEMU was a secondary and keeps ``rew0``. Packets of the guest then
    pass ``rew0`` first and are compared in the numbers that its clients know (``insert: before``
    is the netdev's side of it).
    """
    nic = spec.nics[nic_index]
    place: dict[str, Any] = {"status": "on" if status else "off"}
    if behind_rewriter:
        place |= {"insert": "before", "position": f"id={suffixed('rew0', nic_index)}"}
    name = _namer(nic_index)
    filters = (
        _filter(nic, "filter-mirror", name("m0"), "tx", outdev=name("mirror0")),
        _filter(nic, "filter-redirector", name("redire0"), "rx", indev=name("compare_out")),
        _filter(nic, "filter-redirector", name("redire1"), "rx", outdev=name("compare0")),
    )
    iothread = {"qom-type": "iothread", "id": name("iothread1")}
    return (*({**one, **place} for one in filters), iothread, _compare(spec, nic_index))


def secondary_filters(spec: PairSpec, nic_index: int) -> tuple[Properties, ...]:
    """Build f1, f2 and rew0 in creation order.

    All of them are on: this guest does not run before COLO does.
    """
    nic = spec.nics[nic_index]
    name = _namer(nic_index)
    return (
        _filter(nic, "filter-redirector", name("f1"), "tx", indev=name("red0")),
        _filter(nic, "filter-redirector", name("f2"), "rx", outdev=name("red1")),
        _filter(nic, "filter-rewriter", name("rew0"), "all"),
    )


def engage_order(nic_index: int) -> tuple[str, ...]:
    """List ids in the order to switch on: the way out of the comparison before the way into it."""
    return tuple(suffixed(name, nic_index) for name in ("redire0", "m0", "redire1"))


def primary_ids_teardown(nic_index: int) -> tuple[str, ...]:
    """List ids for ``object-del``: deleting comp0 first releases every packet that it holds."""
    names = ("comp0", "iothread1", "m0", "redire0", "redire1")
    return tuple(suffixed(name, nic_index) for name in names)


def secondary_ids_teardown(nic_index: int) -> tuple[str, ...]:
    """List ids for ``object-del`` at a promotion; ``rew0`` stays for open connections."""
    return tuple(suffixed(name, nic_index) for name in ("f2", "f1"))


def compare_id(nic_index: int) -> str:
    """Return the id of the comparison of one NIC."""
    return suffixed("comp0", nic_index)


def comparison_limits(spec: PairSpec) -> Properties:
    """Return the properties of a comparison that may be set while it runs."""
    return {
        "compare_timeout": spec.checkpoint.compare_timeout_ms,
        "expired_scan_cycle": spec.checkpoint.expired_scan_cycle_ms,
        "max_queue_size": spec.checkpoint.max_queue_size,
    }


def _namer(nic_index: int) -> Callable[[str], str]:
    return lambda document_id: suffixed(document_id, nic_index)


def _filter(
    nic: NicSpec, qom_type: str, object_id: str, queue: str, **devices: str
) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "qom-type": qom_type,
        "id": object_id,
        "netdev": nic.id,
        "queue": queue,
        **devices,
    }
    if has_vnet_header(nic):
        properties["vnet_hdr_support"] = True
    return properties


def _compare(spec: PairSpec, nic_index: int) -> dict[str, Any]:
    name = _namer(nic_index)
    properties: dict[str, Any] = {
        "qom-type": "colo-compare",
        "id": name("comp0"),
        "primary_in": name("compare0-0"),
        "secondary_in": name("compare1"),
        "outdev": name("compare_out0"),
        "iothread": name("iothread1"),
        **comparison_limits(spec),
    }
    if has_vnet_header(spec.nics[nic_index]):
        properties["vnet_hdr_support"] = True
    return properties
