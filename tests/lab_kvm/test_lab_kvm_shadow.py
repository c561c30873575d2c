"""A nested host on shadow page tables."""

from __future__ import annotations

from tests.lab_kvm.conftest import KvmHost


def test_a_guest_boots_on_shadow_page_tables_and_the_mode_can_be_switched(shadow_host: KvmHost) -> None:
    done = shadow_host.sh(
        """
        paging=/usr/lib/vmkit-lab/paging
        $paging
        vmkit create one --image micro --accel kvm --nic none --wait --deadline 5m >&2
        virsh dumpxml one | grep -c "type='kvm'"
        vmkit delete one --force >&2
        $paging nested
        $paging
        $paging shadow
        $paging
        """,
        timeout=900,
    )
    assert done.stdout.split() == ["shadow", "1", "nested", "shadow"]
