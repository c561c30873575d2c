"""What a physical function lets a virtual function do: MAC address, VLAN, rate, spoof check, trust (rtnetlink)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from vmkit.errors import EffectError, NotFoundError, RefusedError, UnsupportedError

NO_MAC: Final = "00:00:00:00:00:00"
"""What a driver shows of a virtual function that has no address from its physical function yet."""
_UNSET: Final = 0xFFFFFFFF
_WHICH: Final = "see what there is: vmkit sriov list, ip link"
"""The kernel's -1: the driver does not tell (rtnl_fill_vfinfo in net/core/rtnetlink.c)."""
_VF_FILTER: Final = 1  # RTEXT_FILTER_VF of linux/rtnetlink.h: leave it out, and nothing is told about VFs


@dataclass(frozen=True, slots=True)
class VfSettings:
    """Settings of a virtual function, as its physical function holds them. None: unknown, or left as it is.

    Attributes:
        mac: MAC address; NO_MAC for none, which lets the driver of the VF choose one.
        vlan: 0 to 4094, 0 for none. The card adds the tag to what is sent, and removes it from what is received.
        qos: 802.1p priority in that tag.
        max_tx_rate: Mbit/s, 0 for no limit.
        spoofcheck: the card drops what is sent from another MAC address.
        trust: the VF may change its address and ask for promiscuous mode.
    """

    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    max_tx_rate: int | None = None
    spoofcheck: bool | None = None
    trust: bool | None = None

    def beyond(self, now: VfSettings) -> dict[str, Any]:
        """What has to be changed to come from `now` to these: fields that are set here and differ."""
        wanted = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in wanted.items() if v is not None and v != getattr(now, k)}


def read_netlink(netdev: str) -> dict[int, VfSettings]:
    """The settings of every virtual function of a network interface of this machine, by number.

    Raises:
        NotFoundError: there is no such interface.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        try:
            (message,) = route.link("get", ifname=netdev, ext_mask=_VF_FILTER)
        except (NetlinkError, ValueError) as e:
            raise NotFoundError(f"no network interface named {netdev}", hint=_WHICH) from e
        listed = message.get_attr("IFLA_VFINFO_LIST")
        infos = listed.get_attrs("IFLA_VF_INFO") if listed is not None else []
        return dict(_settings(info) for info in infos)


def _settings(info: Any) -> tuple[int, VfSettings]:
    def of(name: str, field: str) -> Any:
        found = info.get_attr(f"IFLA_VF_{name}")
        return None if found is None else found[field]

    def known(value: int | None) -> bool | None:
        return None if value is None or value == _UNSET else bool(value)

    return int(info.get_attr("IFLA_VF_MAC")["vf"]), VfSettings(
        mac=of("MAC", "mac"),
        vlan=of("VLAN", "vlan"),
        qos=of("VLAN", "qos"),
        max_tx_rate=of("RATE", "max_tx_rate"),
        spoofcheck=known(of("SPOOFCHK", "spoofchk")),
        trust=known(of("TRUST", "trust")),
    )


def write_netlink(netdev: str, number: int, changes: Mapping[str, Any]) -> None:
    """Change settings of one virtual function, in the order given. Where one fails, those before it stay.

    Args:
        netdev: interface of the physical function.
        number: of the virtual function.
        changes: fields of VfSettings and their new values; `vlan` and `qos` go together.

    Raises:
        UnsupportedError: the driver does not have this setting. RefusedError: not permitted.
        EffectError: the driver does not take the value.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        found = route.link_lookup(ifname=netdev)
        if not found:
            raise NotFoundError(f"no network interface named {netdev}", hint=_WHICH)
        for name, body in _requests(changes):
            try:
                route.link("set", index=found[0], vf={"vf": number, **body})
            except NetlinkError as e:
                raise setting_error(netdev, number, name, e.code, str(e.args[-1])) from e


def _requests(changes: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """One request for each setting, so that an error is known to be about that one."""
    made: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        match name:
            case "mac":
                made[name] = {"mac": value}
            case "vlan" | "qos":
                made["vlan"] = {"vlan": {"vlan": changes.get("vlan", 0), "qos": changes.get("qos", 0)}}
            case "max_tx_rate":
                made[name] = {"rate": {"max_tx_rate": value, "min_tx_rate": 0}}
            case "spoofcheck":
                made[name] = {"spoofchk": int(value)}
            case "trust":
                made[name] = {"trust": int(value)}
    return list(made.items())


def setting_error(netdev: str, number: int, name: str, code: int, text: str) -> RefusedError | EffectError:
    """The error for a setting that the kernel did not take."""
    what = f"{WORDS.get(name, name)} of VF {number} of {netdev}"
    match code:
        case 95 | 22 if name == "max_tx_rate":
            return UnsupportedError(
                f"{what} cannot be set: {text}",
                hint="the driver has no rate limits, or the value is above the speed of the link, or the link is down",
            )
        case 95:  # EOPNOTSUPP
            return UnsupportedError(f"{what} cannot be set: the driver does not have it", hint="leave it out")
        case 1 | 13:
            return RefusedError(f"{what} cannot be set: not permitted", hint="run as root")
    return EffectError(f"{what} cannot be set: {text}", hint="what the driver said of it is in the kernel's log: dmesg")


WORDS: Final = {
    "mac": "the MAC address",
    "vlan": "the VLAN",
    "max_tx_rate": "the rate limit",
    "spoofcheck": "the spoof check",
    "trust": "trust",
}
"""Settings in the words of messages."""
