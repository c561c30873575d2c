"""What `vmkit show` says about how a VM's process is confined."""

from __future__ import annotations

import os

from vmkit.system.confinement import CAPABILITIES, Confinement, confinement
from vmkit.system.process import ProcessId
from vmkit.system.procmem import Running
from vmkit.vm.isolation import UNKNOWN, Label, judge, labels

XML = """<domain><seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-x</label></seclabel>
<seclabel type='dynamic' model='dac'><label>+64055:+104</label></seclabel>
<seclabel type='none' model='selinux'/></domain>"""
ARGV = ("qemu", "-uuid", "X", "-sandbox", "on,spawn=deny")


def test_labels_and_user_of_another_machine() -> None:
    given = labels(XML)
    assert given == (Label("apparmor", "libvirt-x"), Label("dac", "+64055:+104"))
    seen = judge(given, None, None)
    assert seen.user == "uid 64055"
    assert {seen.seccomp, seen.capabilities, seen.namespaces, seen.cgroup} == {UNKNOWN}


def test_a_process_of_this_machine() -> None:
    seen = Confinement(64055, "libvirt-qemu", (), 1, True, ("mnt",), "/machine.slice/x")
    found = judge((), seen, Running(ProcessId(1, 1), "/usr/bin/qemu", ARGV))
    assert (found.user, found.seccomp, found.sandbox) == ("libvirt-qemu (64055)", "on, 1 filter", "on,spawn=deny")
    assert (found.capabilities, found.namespaces, found.no_new_privileges) == ("none", "mnt", "yes")
    weak = judge((), Confinement(0, "root", ("sys_admin",), 0, None, None, None), Running(ProcessId(1, 1), "", ()))
    assert (weak.seccomp, weak.sandbox, weak.capabilities) == ("off", "off", "sys_admin")
    assert (weak.namespaces, weak.no_new_privileges, weak.cgroup) == (UNKNOWN, UNKNOWN, UNKNOWN)


def test_the_kernel_is_read() -> None:
    me = confinement(os.getpid())
    assert me is not None
    assert me.uid == os.geteuid()
    assert set(me.capabilities) <= set(CAPABILITIES)
    assert me.namespaces is None or "user" not in me.namespaces or os.geteuid() != 0
    assert confinement(2**22 + 1) is None
