# What vmkit reads of a host's PCI devices, printed in one go. It runs in a POSIX sh with GNU find and grep, here or on
# the far side of ssh, and writes nothing. vmkit/device/facts.py reads it: sections begin with a line @NAME, and without
# the section @end something is missing. Few processes: a server has hundreds of functions.
LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
export LC_ALL PATH

echo @host
uname -n
cat /proc/sys/kernel/random/boot_id 2>/dev/null
command -v ip >/dev/null || echo no-ip

if cd /sys/bus/pci/devices 2>/dev/null; then
  echo @files
  grep -as '' */uevent */numa_node */driver_override */sriov_totalvfs */sriov_numvfs /dev/null
  echo @links
  find */ -maxdepth 1 -type l \( -name driver -o -name iommu_group -o -name physfn -o -name 'virtfn*' \) -printf '%p %l\n'
  echo @names
  wanted=$(grep -ahs '^PCI_ID=' */uevent | sort -u | cut -d= -f2 | tr 'A-F\n' 'a-f ')
  for ids in /usr/share/misc/pci.ids /usr/share/hwdata/pci.ids; do
    [ -r "$ids" ] || continue
    awk -v wanted="$wanted" '
      BEGIN { n = split(wanted, ids, " "); for (i = 1; i <= n; i++) { split(ids[i], p, ":"); vendor[p[1]]; device[ids[i]] } }
      /^C / { exit }
      /^[0-9a-f]/ { v = $1; name = substr($0, 7); next }
      /^\t[0-9a-f]/ { if (v in vendor && (v ":" $1) in device) print v ":" $1 "|" name "|" substr($0, 8) }' "$ids"
    break
  done
fi
if cd /sys/class/net 2>/dev/null; then
  echo @nets
  find . -maxdepth 1 -type l -printf '%f %l\n'
  echo @lower
  find */ -maxdepth 1 -type l \( -name master -o -name 'lower_*' \) -printf '%p %l\n'
  echo @states
  grep -as '' */operstate /dev/null
fi
echo @addresses
ip -o addr show scope global 2>/dev/null
echo @routes
ip -o route show default 2>/dev/null
ip -o -6 route show default 2>/dev/null
echo @ssh
echo "${SSH_CONNECTION:-}"

# The road from every mounted block device down to its hardware, through what lies between (LVM, dm-crypt, md).
block() {
  [ -e "/sys/dev/block/$1" ] || return 0
  printf '%s %s\n' "$2" "$(readlink -f "/sys/dev/block/$1")"
  for s in "/sys/dev/block/$1/slaves"/*/dev; do
    [ -r "$s" ] && block "$(cat "$s")" "$2"
  done
}
echo @mounts
cut -d' ' -f3,5 /proc/self/mountinfo 2>/dev/null | sort -u -k1,1 | while read -r device point; do
  case $device in 0:*) ;; *) block "$device" "$point" ;; esac
done
cut -d' ' -f1 /proc/swaps 2>/dev/null | while read -r file; do
  number=/sys/class/block/${file##*/}/dev
  [ -r "$number" ] && block "$(cat "$number")" swap
done

echo @vfio
if [ -d /dev/vfio ]; then
  find /proc/[0-9]*/fd -maxdepth 1 -lname '/dev/vfio/*' -printf '%h %l\n' 2>/dev/null | sort -u | while read -r fd file; do
    read -r name 2>/dev/null <"${fd%/fd}/comm" && printf '%s %s %s\n' "${fd%/fd}" "$file" "$name"
  done
fi
echo @claims
grep -as '' /run/vmkit/devices/*.json /dev/null
echo @end
