# What the guest of a copy runs so that it becomes a machine of its own. Read by any POSIX shell, busybox's too.
#
# Variables that are set before: name, machine_id, now (seconds since 1970), seed (hexadecimal, for random numbers),
# seedless (yes: the disk that cloud-init read is empty now), and
# cards: one line a card: OLD-MAC NEW-MAC ADDRESS|dhcp|none GATEWAY|- OLD-ADDRESS|dhcp|none OLD-GATEWAY|-
# The cables are pulled while this runs; addresses are asked for in the background as soon as they are plugged in.
# Programs are few: on an emulated CPU each one that is started takes tens of milliseconds.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C
changed=
log() { echo "vmkit-identity: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }
on_networkd() { have networkctl && systemctl -q is-active systemd-networkd; }

# Without this the kernel goes on with the random numbers of the source, unless it heard of the copy by its generation ID:
# what is written is mixed in, and RNDRESEEDCRNG (random(4)) has it used at once. The micro guest's `renew` does that and
# sets the clock; `reseed` is of such guests that were built earlier.
printf '%s' "$seed" >/dev/urandom
renew "$now" 2>/dev/null || {
  date -u -s "@$now" >/dev/null 2>&1
  reseed 2>/dev/null || perl -e 'open F, ">/dev/urandom"; ioctl F, 0x5207, 0 or exit 1' 2>/dev/null ||
    python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)' 2>/dev/null ||
    log "random numbers may repeat those of the source for a minute: neither perl nor python3 is there"
}

read -r old_name </proc/sys/kernel/hostname
echo "$name" >/proc/sys/kernel/hostname
[ ! -e /etc/hostname ] || echo "$name" >/etc/hostname
[ ! -e /etc/hosts ] || [ "$old_name" = "$name" ] || sed -i "s/\\b$old_name\\b/$name/g" /etc/hosts

[ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] || printf '%s\n' "$machine_id" >/var/lib/dbus/machine-id
[ ! -d /etc ] || printf '%s\n' "$machine_id" >/etc/machine-id
if [ -d /etc/cloud/cloud.cfg.d ]; then
  # At each boot cloud-init would set the name of its seed again; without a seed it would do everything anew.
  echo "preserve_hostname: true" >/etc/cloud/cloud.cfg.d/99-vmkit-identity.cfg
  [ "$seedless" = no ] || : >/etc/cloud/cloud-init.disabled
fi
[ ! -d /var/lib/systemd ] || rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret 2>/dev/null

# A card gets its address in another way than in the source. The file goes before those of cloud-init and netplan.
readdress() { # CARD MAC ADDRESS|dhcp|none GATEWAY|-
  [ ! -x /etc/udhcpc ] || return 0 # addressed by hand below
  if ! on_networkd; then
    log "card $1 cannot change from the address of the source to $3: systemd-networkd does not run" >&2
    exit 1
  fi
  {
    printf '[Match]\nMACAddress=%s\n\n[Network]\n' "$2"
    case $3 in
      dhcp) printf 'DHCP=yes\n' ;;
      none) printf 'DHCP=no\nIPv6AcceptRA=no\n' ;;
      *) printf 'Address=%s\n' "$3" ;;
    esac
    [ "$4" = - ] || printf 'Gateway=%s\n' "$4"
  } >"/etc/systemd/network/05-vmkit-$1.network"
  chmod 644 "/etc/systemd/network/05-vmkit-$1.network"
}

cards_left=$cards
while [ -n "$cards_left" ]; do
  line=${cards_left%%
*}
  case $cards_left in
    *"
"*) cards_left=${cards_left#*
} ;;
    *) cards_left= ;;
  esac
  set -- $line
  [ $# -ge 6 ] || continue
  for path in /sys/class/net/*; do
    [ -e "$path/device" ] && [ ! -e "$path/master" ] || continue
    read -r mac <"$path/address"
    [ "$mac" = "$1" ] || [ "$mac" = "$2" ] || continue # a copy that was booted has its new address already
    card=${path##*/}
    ip link set dev "$card" down
    ip addr flush dev "$card" 2>/dev/null
    [ ! -x /etc/udhcpc ] || : >"/run/address-$card"
    ip link set dev "$card" address "$2" up || {
      log "card $card keeps the address $1"
      ip link set dev "$card" up
    }
    changed="$changed $card=$3=$4"
    case $3=$5=$6 in
      */*=*/*=-) [ "$4" = - ] || readdress "$card" "$2" "$3" "$4" ;;
      */*=*/*) ;; # an address for an address: below
      *) [ "$3" = "$5" ] || readdress "$card" "$2" "$3" "$4" ;;
    esac
  done
  for file in /etc/netplan/* /etc/systemd/network/* /run/systemd/network/* /etc/network/interfaces \
    /etc/network/interfaces.d/* /etc/NetworkManager/system-connections/* /etc/udev/rules.d/*; do
    [ -f "$file" ] || continue
    sed -i "s/$1/$2/gI" "$file"
    case $3=$5 in */*=*/*) sed -i "s|$5|$3|g" "$file" ;; esac
    [ "$4" = - ] || [ "$6" = - ] || [ "$4" = "$6" ] || sed -i "s|$6|$4|g" "$file"
  done
done

# Waits for the cable, then for what gives this kind of guest its addresses.
plugged() {
  tries=0
  while [ $tries -lt 600 ]; do
    read -r carrier 2>/dev/null <"/sys/class/net/$1/carrier" && [ "$carrier" = 1 ] && return 0
    sleep 0.05 2>/dev/null || sleep 1
    tries=$((tries + 1))
  done
  return 1
}

by_hand() { # CARD ADDRESS GATEWAY
  case $2 in
    none) ;;
    dhcp) udhcpc -i "$1" -s /etc/udhcpc -p "/run/udhcpc-$1.pid" -b -t 3 -T 1 -A 5 -x "hostname:$name" ;;
    *)
      ip addr add "$2" dev "$1"
      [ "$3" = - ] || ip route replace default via "$3" dev "$1"
      ;;
  esac
}

network() {
  if [ -x /etc/udhcpc ]; then # what runs there would ask for the old address again
    for word in $changed; do
      file=/run/udhcpc-${word%%=*}.pid
      if [ -e "$file" ]; then
        read -r pid <"$file" && kill "$pid"
      else
        killall -q udhcpc # of a micro guest that was built earlier
      fi
    done
  fi
  for word in $changed; do
    plugged "${word%%=*}"
  done
  if [ -x /etc/udhcpc ]; then
    for word in $changed; do
      rest=${word#*=}
      by_hand "${word%%=*}" "${rest%=*}" "${rest##*=}"
    done
  elif on_networkd; then
    : # it was told before
  elif have nmcli && systemctl -q is-active NetworkManager; then
    nmcli connection reload
    systemctl restart NetworkManager
  elif have ifup; then
    for word in $changed; do
      ifdown --force "${word%%=*}"
      ifup "${word%%=*}"
    done
  fi
}

set -- /etc/ssh/ssh_host_*_key
if [ -e "$1" ]; then
  rm -f /etc/ssh/ssh_host_*
  ssh-keygen -q -A
  systemctl -q try-restart ssh 2>/dev/null || systemctl -q try-restart sshd
fi >/dev/null 2>&1 </dev/null
# Before the cable is plugged in: it would ask in the name of the source, by what it read at its own start.
if on_networkd; then
  ! have netplan || netplan generate
  systemctl restart systemd-networkd
fi >/dev/null 2>&1 </dev/null
(
  # By exec, for a shell keeps what it redirects for a function alone; and the agent waits until its pipes are closed.
  exec >/dev/null 2>&1 </dev/null
  network
) &
exit 0
