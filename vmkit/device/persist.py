"""Virtual functions that are there after each boot of the host: a systemd unit for each physical function."""

from __future__ import annotations

import re
from typing import Final

from vmkit.errors import EffectError, UnsupportedError
from vmkit.system.devices import DeviceHost

FOLDER: Final = "/etc/systemd/system"
_NAME: Final = "vmkit-sriov-"
_LINE: Final = re.compile(r"vmkit-sriov-([0-9a-f_]+\.[0-7])\.service:ExecStart=.*'echo (\d+) >", re.ASCII)


def unit(address: str, count: int) -> str:
    """The unit's text. The interface has to be up first, and what libvirt starts at boot may need the functions."""
    base = f"/sys/bus/pci/devices/{address}"
    return "\n".join(
        [
            "[Unit]",
            f"Description={count} virtual functions of {address}, as asked for by vmkit sriov set",
            f"ConditionPathExists={base}/sriov_numvfs",
            "Wants=systemd-udev-settle.service",
            "After=systemd-udev-settle.service",
            "Before=network-pre.target libvirtd.service virtqemud.service",
            "",
            "[Service]",
            "Type=oneshot",
            "RemainAfterExit=yes",
            f"ExecStart=/bin/sh -c 'for n in {base}/net/*; do ip link set dev \"$${{n##*/}}\" up; done'",
            f"ExecStart=/bin/sh -c 'echo {count} >{base}/sriov_numvfs'",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def remembered(host: DeviceHost) -> dict[str, int]:
    """How many virtual functions each physical function gets at boot, by address, as far as vmkit was told."""
    done = host.run(["grep", "-rsH", "-e", "^ExecStart=.*sriov_numvfs", FOLDER, "--include", f"{_NAME}*.service"])
    found = (_LINE.search(line) for line in done.stdout.splitlines())
    return {m[1].replace("_", ":"): int(m[2]) for m in found if m}


def remember(host: DeviceHost, address: str, count: int) -> None:
    """Install the unit and enable it.

    Raises:
        UnsupportedError: the host has no systemd. EffectError: it cannot be installed.
    """
    name = _unit_name(address)
    if host.run(["systemctl", "--version"]).status:
        raise UnsupportedError(
            f"{host.where} has no systemd to make virtual functions at boot",
            hint=f"have your init system do: echo {count} >/sys/bus/pci/devices/{address}/sriov_numvfs",
        )
    for argv, stdin in (
        (["tee", f"{FOLDER}/{name}"], unit(address, count)),
        (["systemctl", "daemon-reload"], ""),
        (["systemctl", "enable", "--quiet", name], ""),
    ):
        done = host.run(argv, stdin=stdin)
        if done.status:
            raise EffectError(
                f"installing {name} on {host.where}: {' '.join(done.stderr.split())}",
                hint=f"it takes root there, and {FOLDER} has to be writable",
            )


def forget(host: DeviceHost, address: str, _count: int = 0) -> None:
    """Disable the unit and remove it, if there is one."""
    name = _unit_name(address)
    if address in remembered(host):
        host.run(["systemctl", "disable", "--quiet", name])
        host.run(["rm", "-f", f"{FOLDER}/{name}"])
        host.run(["systemctl", "daemon-reload"])


def _unit_name(address: str) -> str:
    """Colons are no good in names that systemctl takes for paths."""
    return f"{_NAME}{address.replace(':', '_')}.service"
