"""A captured host with an SR-IOV card, and a machine of which only its devices exist, for tests of vmkit.device."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmkit.device.claim import Claim, Process, read_claim, to_text
from vmkit.device.facts import DeviceFacts, parse
from vmkit.errors import EffectError, NotFoundError
from vmkit.system.process import Completed
from vmkit.system.vf import VfSettings

CAPTURED = Path(__file__).parents[1] / "data" / "devices" / "nested.txt"
PF, VF0, VF1 = "0000:01:00.0", "0000:01:10.0", "0000:01:10.2"
SATA, LPC, SMBUS = "0000:00:1f.2", "0000:00:1f.0", "0000:00:1f.3"
ROOT_DISK, SSH_NIC, WIRE_NIC = "0000:00:01.0", "0000:00:02.0", "0000:00:05.0"
DEAD = Process("elsewhen", "boot", "pid:[1]", 4000001, 1)
BEFORE = VfSettings("00:00:00:00:00:00", 0, 0, 0, True, False)


def captured(text: str = "") -> DeviceFacts:
    """The host, with lines added to its capture: `text` goes before the end."""
    return parse(CAPTURED.read_text().replace("@end", f"{text}\n@end"))


def claim_on(address: str = VF0, **fields: Any) -> Claim:
    plain = Claim(address, "web1", "uuid-1", "create web1", DEAD, "2026-01-01T00:00:00+00:00", driver="igbvf")
    return replace(plain, **fields)


def with_claims(facts: DeviceFacts, *claims: Claim) -> DeviceFacts:
    return replace(facts, claims={c.address: c for c in claims})


class Killed(BaseException):
    """The process is gone: from here on none of its calls reaches the machine."""


class FakeMachine:
    """Devices that behave as Linux' sysfs and an SR-IOV driver do, as far as lending goes. A vmkit.system.DeviceHost.

    Attributes:
        dies_at: number of the call before which the process is killed.
        refuses: paths or settings that the kernel does not take.
    """

    where = "the machine"

    def __init__(self) -> None:
        self.driver: dict[str, str | None] = {VF0: "igbvf", VF1: "igbvf"}
        self.native = dict(self.driver)
        self.override: dict[str, str] = {}
        self.settings = {0: BEFORE, 1: replace(BEFORE, mac="52:54:00:00:00:99", vlan=7, max_tx_rate=100)}
        self.files: dict[str, str] = {}
        self.up: set[str] = set()
        self.calls = 0
        self.dies_at: int | None = None
        self.refuses: set[str] = set()
        self.log: list[str] = []

    def state(self) -> tuple[Any, ...]:
        return dict(self.driver), dict(self.override), dict(self.settings), dict(self.files)

    def revived(self) -> FakeMachine:
        self.dies_at = None
        return self

    def _call(self, what: str) -> None:
        if self.dies_at is not None and self.calls >= self.dies_at:
            raise Killed
        self.calls += 1
        self.log.append(what)

    def capture(self, script: str) -> str:
        self._call("capture")
        text = CAPTURED.read_text()
        for address, driver in self.driver.items():
            old = f"{address}/driver ../../../../bus/pci/drivers/igbvf"
            assert old in text
            text = text.replace(old, f"{address}/driver ../{driver}" if driver else "")
        return text.replace("@claims", "@claims\n" + "\n".join(f"{p}:{t}" for p, t in self.files.items()))

    def facts(self) -> DeviceFacts:
        return parse(self.capture(""))

    def claims(self) -> list[Claim]:
        return [c for t in self.files.values() if (c := read_claim(t))]

    def write(self, path: str, text: str) -> None:
        self._call(f"write {path.rpartition('/')[2]} {text.strip()}")
        if path in self.refuses:
            raise EffectError(f"writing to {path}: Invalid argument")
        name, address = path.rpartition("/")[2], text.strip()
        match name:
            case "driver_override":
                self.override[path.split("/")[5]] = address
                if not address:
                    del self.override[path.split("/")[5]]
            case "unbind":
                if self.driver[address] is None:
                    raise NotFoundError(path)
                self.driver[address] = None
            case "drivers_probe":
                wanted = self.override.get(address, self.native[address])
                if self.driver[address] is None and wanted not in self.refuses:
                    self.driver[address] = wanted
            case _:
                raise AssertionError(path)

    def link(self, path: str) -> str | None:
        self._call("link")
        parts = path.split("/")
        if path.endswith("/module"):
            return "vfio_pci"
        if parts[4] == "devices" and parts[5] in self.driver:
            return self.driver[parts[5]] if path.endswith("/driver") else parts[5]
        return None

    def run(self, argv: Sequence[str], *, stdin: str = "") -> Completed:
        raise AssertionError(argv)

    def vf_settings(self, net: str) -> dict[int, VfSettings]:
        self._call("settings")
        assert net == "eth2"
        return dict(self.settings)

    def change_vf(self, net: str, number: int, changes: Mapping[str, Any]) -> None:
        for name, value in changes.items():
            self._call(f"set {name} {value}")
            if name in self.refuses:
                raise EffectError(f"{name} cannot be set")
            self.settings[number] = replace(self.settings[number], **{name: value})

    def set_up(self, net: str) -> None:
        self._call(f"up {net}")
        self.up.add(net)

    def swap(self, path: str, old: str | None, new: str | None) -> bool:
        self._call(f"swap {path.rpartition('/')[2]}")
        if self.files.get(path) != old:
            return False
        if new is None:
            del self.files[path]
        else:
            json.loads(new)
            self.files[path] = new
        return True


def file_of(claim: Claim) -> dict[str, str]:
    return {f"/run/vmkit/devices/{claim.address}.json": to_text(claim)}
