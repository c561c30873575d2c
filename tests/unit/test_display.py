"""Screens of VMs: chosen, written into the XML, found again in it, and their pictures as PNG."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from tests.unit.test_choices import HOST, made
from tests.unit.test_domain_xml import valid, xml_of
from vmkit.errors import EffectError, SpecError, UnsupportedError
from vmkit.vm.picture import as_png
from vmkit.vm.screens import Screen, screens_in, tunnel


def test_without_being_asked_for_there_is_no_screen() -> None:
    root = ET.fromstring(xml_of())
    assert root.find("devices/graphics") is None
    assert root.find("devices/video") is None
    assert "console=tty0" not in (root.findtext("os/cmdline") or "")


@pytest.mark.parametrize("kind", ["vnc", "spice"])
def test_a_screen_listens_on_the_loopback_address_alone(kind: str) -> None:
    text = xml_of(display=kind)
    valid(text, "domain.rng")
    graphics = ET.fromstring(text).findall("devices/graphics")
    assert [g.get("type") for g in graphics] == [kind]
    assert [e.attrib for e in graphics[0]] == [{"type": "address", "address": "127.0.0.1"}]
    assert (ET.fromstring(text).findtext("os/cmdline") or "").startswith("console=tty0 ")
    _, plan = made(HOST, display=kind)
    assert [c.value for c in plan.choices if c.subject == "display"] == [kind]


def test_what_qemu_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(UnsupportedError, match="has no SPICE") as caught:
        made(replace(HOST, graphics=frozenset(["vnc", "dbus"])), display="spice")
    assert "ask for vnc" in (caught.value.hint or "")
    with pytest.raises(UnsupportedError) as caught:
        made(replace(HOST, graphics=frozenset()), display="vnc")
    assert "vmkit console" in (caught.value.hint or "")


def test_another_word_is_a_wrong_spec() -> None:
    with pytest.raises(SpecError, match="display"):
        made(HOST, display="vga")


def test_screens_of_any_domain() -> None:
    found = screens_in(
        """<domain><devices>
        <graphics type='vnc' port='5901' autoport='yes' listen='127.0.0.1' passwdValidTo='x'>
          <listen type='address' address='127.0.0.1'/></graphics>
        <graphics type='spice' port='5902' tlsPort='5903' passwd='secret'>
          <listen type='address' address='0.0.0.0'/></graphics>
        <graphics type='spice' tlsPort='5905'><listen type='address' address='127.0.0.1'/></graphics>
        <graphics type='vnc' port='-1' autoport='yes'/>
        <graphics type='vnc' socket='/run/a.sock'><listen type='socket' socket='/run/a.sock'/></graphics>
        <graphics type='vnc' port='5904'><listen type='address' address='::1'/></graphics>
        <graphics type='egl-headless'/>
        </devices></domain>"""
    )
    assert [s.uri for s in found] == [
        "vnc://127.0.0.1:5901",
        "spice://127.0.0.1:5902?tls-port=5903",
        "spice://127.0.0.1?tls-port=5905",
        None,
        "vnc+unix:///run/a.sock",
        "vnc://[::1]:5904",
        None,
    ]
    assert [s.password for s in found] == [False, True, False, False, False, False, False]
    assert found[1].listen == "0.0.0.0"  # noqa: S104 - what a domain says


@pytest.mark.parametrize(
    ("uri", "screen", "expected"),
    [
        ("qemu:///system", Screen("vnc", "127.0.0.1", 5901), None),
        ("qemu+tcp://h/system", Screen("vnc", "127.0.0.1", 5901), None),
        ("qemu+ssh://root@h/system", Screen("vnc", "127.0.0.1", 5901), "ssh -N -L 5901:127.0.0.1:5901 root@h"),
        (
            "qemu+ssh://root@h:2222/system?keyfile=/my%20keys/k&no_tty=1",
            Screen("spice", "::1", 5902),
            "ssh -N -L '5902:[::1]:5902' -i '/my keys/k' -p 2222 root@h",
        ),
        (
            "qemu+ssh://root@h/system?command=/lab/ssh",
            Screen("vnc", "127.0.0.1", 5901),
            "/lab/ssh -N -L 5901:127.0.0.1:5901 root@h",
        ),
        (
            "qemu+ssh://h/system",
            Screen("spice", "127.0.0.1", 5902, 5903),
            "ssh -N -L 5902:127.0.0.1:5902 -L 5903:127.0.0.1:5903 h",
        ),
        ("qemu+ssh://h/system", Screen("vnc", None, None, socket="/run/a"), "ssh -N -L /tmp/a:/run/a h"),
        ("qemu+ssh://h/system", Screen("vnc", "127.0.0.1", None), None),
        ("qemu+ssh://-oProxyCommand=x/system", Screen("vnc", "127.0.0.1", 5901), None),
    ],
)
def test_the_way_to_a_screen_of_another_machine(uri: str, screen: Screen, expected: str | None) -> None:
    assert tunnel(uri, screen) == expected


def chunks(png: bytes) -> dict[bytes, bytes]:
    """The parts of a PNG by their kinds, by the format's own description (https://www.w3.org/TR/png-3/)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, {}
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        found[kind] = found.get(kind, b"") + body
        at += 12 + length
    return found


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Size and RGB bytes of a PNG whose lines are not filtered."""
    parts = chunks(png)
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, colour) == (8, 2)
    raw = zlib.decompress(parts[b"IDAT"])
    rows = [raw[i * (width * 3 + 1) :][: width * 3 + 1] for i in range(height)]
    assert all(row[0] == 0 for row in rows)
    return width, height, b"".join(row[1:] for row in rows)


@pytest.mark.parametrize("head", [b"P6\n2 3\n255\n", b"P6 2 3 255 ", b"P6\n# of QEMU\n2\t3\n255\n"])
def test_a_ppm_becomes_a_png(head: bytes) -> None:
    body = bytes(range(18))
    assert pixels(as_png("image/x-portable-pixmap", head + body)) == (2, 3, body)


def test_a_png_stays_as_it_is() -> None:
    png = as_png("image/x-portable-pixmap", b"P6 1 1 255 abc")
    assert as_png("image/png", png) == png
    assert as_png("application/octet-stream", png) == png


@pytest.mark.parametrize(
    "data", [b"", b"P6 2", b"P6 2 3 255 short", b"P5 1 1 255 a", b"P6 1 1 65535 abcdef", b"GIF89a"]
)
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    with pytest.raises(EffectError, match="not a picture"):
        as_png("image/x-portable-pixmap", data)
