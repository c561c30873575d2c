# What vmkit doctor reads of a host, printed in one go. It runs in a POSIX sh, here or on the far side of ssh; it writes
# nothing, installs nothing, and needs no root. The format is read by vmkit/host/tree.py:
#   F PATH   a file; its lines follow, each after one space       N PATH   a device or socket; ' rw', ' r-', ' --' for us
#   D PATH   a folder; its names follow likewise                  X PATH   it is there, and we may not read it
#   E        the end: without this line something is missing
# Paths that begin with @ are no files but answers of programs.
LC_ALL=C
export LC_ALL

# Small files, read by the shell itself: a process for each would take seconds on a large server.
small() {
  for f; do
    [ -f "$f" ] || continue
    if [ -r "$f" ]; then
      printf 'F %s\n' "$f"
      { while IFS= read -r l || [ -n "$l" ]; do printf ' %s\n' "$l"; done <"$f"; } 2>/dev/null
    else
      printf 'X %s\n' "$f"
    fi
  done
}
large() {
  for f; do
    [ -f "$f" ] || continue
    if [ -r "$f" ]; then
      printf 'F %s\n' "$f"
      head -c 2000000 "$f" 2>/dev/null | tr '\000' ' ' | sed 's/^/ /'
      echo
    else
      printf 'X %s\n' "$f"
    fi
  done
}
folder() {
  for d; do
    [ -d "$d" ] || continue
    if [ -r "$d" ] && [ -x "$d" ]; then
      printf 'D %s\n' "$d"
      for f in "$d"/*; do
        if [ -e "$f" ] || [ -L "$f" ]; then printf ' %s\n' "${f##*/}"; fi
      done
    else
      printf 'X %s\n' "$d"
    fi
  done
}
node() {
  for f; do
    [ -e "$f" ] || continue
    r=- w=-
    [ -r "$f" ] && r=r
    [ -w "$f" ] && w=w
    printf 'N %s\n %s%s\n' "$f" "$r" "$w"
  done
}
answer() {
  printf 'F @%s\n' "$1"
  shift
  "$@" 2>/dev/null | sed 's/^/ /'
  echo
}

answer uid id -u
answer machine uname -m
large /proc/cpuinfo
small /sys/kernel/mm/transparent_hugepage/enabled
folder /sys /sys/module /sys/class/iommu
small /sys/module/kvm*/parameters/* /sys/module/vfio*/parameters/*
node /proc/modules /dev/kvm /dev/vhost-net /dev/vhost-vsock /dev/net/tun /dev/vfio/vfio /dev/userfaultfd /dev/iommu
for i in /sys/class/iommu/*; do
  small "$i/intel-iommu/cap" "$i/intel-iommu/ecap" "$i/amd-iommu/cap" "$i/amd-iommu/features"
done
if [ -r /proc/interrupts ]; then
  chips() { sed -n 's/.*[^A-Za-z]\(IR-[A-Za-z-]*\).*/\1/p' /proc/interrupts | sort -u; }
  answer interrupts chips
elif [ -e /proc/interrupts ]; then
  echo 'X @interrupts'
fi
# What the plan of a VM depends on ends here: every program that is started after this would delay each VM.
if [ "${brief-}" ]; then
  echo E
  exit 0
fi

answer groups id -Gn
answer release uname -r
answer hostname uname -n
answer pagesize getconf PAGESIZE
kernel=$(uname -r)

large /proc/meminfo /proc/cmdline /proc/version /proc/swaps /proc/self/limits /proc/1/cgroup
small /etc/os-release /etc/default/grub /proc/filesystems /proc/cgroups
small /proc/xen/capabilities /sys/hypervisor/type /sys/hypervisor/guest_type /sys/hypervisor/version/*
small /sys/hypervisor/properties/capabilities /proc/device-tree/hypervisor/compatible
if [ "$(head -c 9 /proc/xen/capabilities 2>/dev/null)" = control_d ]; then
  answer xl xl info
  # Xen without live patches says so on the error stream.
  patches() { xen-livepatch list 2>&1; }
  answer livepatch patches
fi
small /run/systemd/container /run/.containerenv
node /.dockerenv /proc/vz /run/systemd/system
small /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name /sys/class/dmi/id/chassis_type
small /sys/class/dmi/id/bios_vendor /sys/devices/system/clocksource/clocksource0/available_clocksource

# These lists come out empty where they are read byte by byte, as a shell does it.
large /sys/devices/system/cpu/online /sys/devices/system/node/node*/cpulist
small /sys/devices/system/cpu/smt/active /sys/devices/system/cpu/vulnerabilities/*
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  small "$c/topology/physical_package_id" "$c/topology/core_id" "$c/topology/die_id"
done
small /sys/devices/system/node/online
for n in /sys/devices/system/node/node[0-9]*; do
  small "$n/meminfo" "$n/distance"
  small "$n"/hugepages/hugepages-*/nr_hugepages "$n"/hugepages/hugepages-*/free_hugepages
done
small /sys/kernel/mm/hugepages/hugepages-*/nr_hugepages /sys/kernel/mm/hugepages/hugepages-*/free_hugepages
small /sys/kernel/mm/transparent_hugepage/defrag
small /sys/kernel/mm/ksm/run /sys/kernel/mm/ksm/pages_sharing /sys/module/zswap/parameters/enabled
small /proc/sys/vm/unprivileged_userfaultfd /proc/sys/vm/swappiness /proc/sys/fs/nr_open

folder /dev/vfio
if [ -r "/lib/modules/$kernel/modules.dep" ]; then
  modules() {
    sed -n 's,^.*/\([a-z_-]*\)\.ko[.a-z]*:.*,\1,p' "/lib/modules/$kernel/modules.dep" |
      grep -Ex 'kvm|kvm[_-]intel|kvm[_-]amd|vhost[_-]net|vhost[_-]vsock|vfio[_-]pci|tun|zram'
  }
  answer modules modules
fi
if [ -r "/boot/config-$kernel" ]; then
  answer config grep -E '^CONFIG_(KVM|KVM_INTEL|KVM_AMD|VHOST_NET|VFIO_PCI|(INTEL|AMD)_IOMMU(_DEFAULT_ON)?|IRQ_REMAP|USERFAULTFD)=' \
    "/boot/config-$kernel"
fi

folder /sys/firmware/acpi/tables /sys/kernel/iommu_groups /sys/firmware/efi
for g in /sys/kernel/iommu_groups/*; do folder "$g/devices"; done
folder /sys/bus/pci/devices
for d in /sys/bus/pci/devices/*; do
  small "$d/uevent"
  if [ -f "$d/sriov_totalvfs" ]; then
    small "$d/sriov_totalvfs" "$d/sriov_numvfs" "$d"/virtfn*/uevent
    folder "$d/net"
  fi
done

small /sys/fs/cgroup/cgroup.controllers
folder /sys/fs/cgroup
small /sys/kernel/security/lsm /sys/module/apparmor/parameters/enabled /sys/fs/selinux/enforce
node /run/libvirt/libvirt-sock /run/libvirt/virtqemud-sock /run/libvirt/virtxend-sock
PATH=$PATH:/usr/sbin:/sbin:/usr/libexec
export PATH
programs() {
  for p in libvirtd virtqemud qemu-system-x86_64 qemu-system-aarch64 xl update-grub grub2-mkconfig \
    apparmor_parser; do command -v "$p"; done
}
answer programs programs
echo E
