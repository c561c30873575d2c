"""The seed of a VM, from its spec to a volume: what is decided first is pure, what is made is one small volume.

The volume stays attached for the VM's whole life. Its instance id is the domain's uuid, so that cloud-init runs what it
runs once at the first boot, and again only in a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vmkit.errors import RefusedError, SpecError
from vmkit.hypervisor.volume import Pool
from vmkit.image import keys, seed, seed_iso
from vmkit.image.manifest import ImageKind
from vmkit.plan import Choice, Plan, Step
from vmkit.vm import cloud_spec
from vmkit.vm.choices.disk import next_device
from vmkit.vm.cloud_spec import CloudInitSpec
from vmkit.vm.design import Design, SeedDesign
from vmkit.vm.metadata import Access
from vmkit.vm.spec_parts import Bus

if TYPE_CHECKING:
    from vmkit.image.manifest import Image
    from vmkit.vm.spec import VmSpec

_BUSES: Final = {Bus.VIRTIO: Bus.VIRTIO, Bus.SCSI: Bus.VIRTIO, Bus.SATA: Bus.SATA, Bus.IDE: Bus.IDE}
"""Bus of the seed by that of the first disk. Debian's cloud kernel has virtio and no AHCI."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the seed of a VM will say.

    Attributes:
        spec: what was asked for, or the defaults.
        hostname: the guest's name for itself.
        user: who logs in; None if only the guest knows the name of its default user.
        keys: public keys besides vmkit's own.
        password: one that was made for this VM; None if none was asked for.
        warnings: what the user should know.
    """

    spec: CloudInitSpec
    hostname: str
    user: str | None
    keys: tuple[str, ...]
    password: str | None
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Wanted seed of {self.hostname}>"  # not the password


def wanted(spec: VmSpec, image: Image | None) -> Wanted | None:
    """What a VM's seed shall say; None where it gets none. Nothing is made; a password that is asked for is thought up.

    Raises:
        SpecError: the image is known to have no cloud-init, user-data contradicts the spec, or a secret is sealed.
    """
    asked = spec.cloud_init
    if asked is None and not (image and image.cloud_init):
        return None
    if asked is not None and image and (image.cloud_init is False or image.kind is ImageKind.MICRO):
        raise SpecError(f"the image '{image.name}' has no cloud-init", path="cloud_init", hint="leave it out")
    chosen = asked or CloudInitSpec()
    for field in ("user_data", "password"):
        if cloud_spec.is_sealed(getattr(chosen, field)):
            raise SpecError(
                "only its digest is known: a VM does not remember secrets",
                path=f"cloud_init.{field}",
                hint="give the file that it was made from",
            )
    warnings = cloud_spec.check(chosen, lambda field: f"cloud_init.{field}")
    user = seed.login_user(chosen.user_data, chosen.user)
    pretended = seed.Login(chosen.user, (), "x" if chosen.password else None)
    seed.user_data(chosen.user_data, pretended, "cloud_init.user_data")  # refuses two passwords
    return Wanted(
        spec=chosen,
        hostname=chosen.hostname or seed.hostname_of(spec.name),
        user=user or (image.user if image else None),
        keys=chosen.ssh_keys or tuple(keys.user_keys().values()),
        password=keys.new_password() if chosen.password == cloud_spec.GENERATE else None,
        warnings=warnings,
    )


def planned(want: Wanted | None, design: Design, plan: Plan) -> tuple[Design, Plan]:
    """The design with its seed, and the plan that tells of it. Pure."""
    if want is None:
        return design, plan
    bus = _BUSES[design.disks[0].bus] if design.disks else Bus.VIRTIO
    device = next_device(bus, [d.device for d in design.disks])
    found = SeedDesign(volume=f"{design.name}-seed.iso", bus=bus, device=device)
    asked = "as asked for" if want.spec != CloudInitSpec() else "the image has cloud-init: its defaults"
    origin = "asked for" if want.spec.ssh_keys else "those of ~/.ssh that ssh uses by itself"
    choices = [
        Choice("cloud_init", f"{device} seed", f"NoCloud, {asked}; it stays attached, and nothing of it is run twice"),
        Choice("cloud_init.user", want.user or "the image's default user", "whom the keys let in"),
        Choice("cloud_init.ssh_keys", f"vmkit's own and {len(want.keys)} more", origin),
        Choice("cloud_init.hostname", want.hostname, "asked for" if want.spec.hostname else "the name of the VM"),
    ]
    if want.spec.password:
        shown = "generated" if want.password else "a hash"
        choices.append(Choice("cloud_init.password", shown, "for the console; the seed holds its hash alone"))
    step = Step("create", f"volume {found.volume}", "what cloud-init reads; root and QEMU alone can")
    first = next((i for i, s in enumerate(plan.steps) if s.verb == "define"), len(plan.steps))
    return replace(design, seed=found), replace(
        plan,
        choices=(*plan.choices, *choices),
        steps=(*plan.steps[:first], step, *plan.steps[first:]),
        warnings=(*plan.warnings, *want.warnings),
    )


def with_addresses(design: Design, uuid: str) -> Design:
    """The design with a MAC address for each card, as network-config names cards by them. Pure."""
    nics = tuple(n if n.mac or n.assigned else replace(n, mac=mac_of(uuid, n.index)) for n in design.nics)
    return replace(design, nics=nics)


def mac_of(uuid: str, index: int) -> str:
    """The MAC address of a VM's card: QEMU's prefix, and three bytes that follow from the uuid."""
    digest = hashlib.sha256(f"{uuid} {index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{b:02x}" for b in digest[:3])


def access_of(want: Wanted, own_key: str) -> Access:
    """Who is let in, as it is remembered."""
    return Access(want.user, (own_key, *(k for k in want.keys if k != own_key)))


def compose(
    want: Wanted, design: Design, spec: VmSpec, uuid: str, own_key: str, password_hash: str | None
) -> seed.Seed:
    """The files of the seed. Pure.

    Args:
        want: what it shall say.
        design: the VM, with MAC addresses.
        spec: what was asked for; its NICs say which address each card has.
        uuid: of the domain.
        own_key: vmkit's own public key.
        password_hash: crypt(5) hash of the password; None for none.
    """
    login = seed.Login(want.spec.user, access_of(want, own_key).keys, password_hash)
    config = want.spec.network_config
    if config is not None:
        import yaml

        network: str | None = yaml.safe_dump(config.get("network", config), sort_keys=False)
    else:
        macs = {n.index: n.mac for n in design.nics}
        asked = [(macs[i], nic) for i, nic in enumerate(spec.nics) if macs.get(i)]
        # What the network keeps for a card it gives it too, with gateway and name server.
        kept = {str(n.mac) for n in design.nics if n.reserve}
        cards = [
            seed.Card(str(mac), *(("dhcp", None) if str(mac) in kept else (nic.address, nic.gateway)))
            for mac, nic in asked
        ]
        network = seed.network_config(cards, want.spec.nameservers)
    return seed.Seed(
        meta_data=seed.meta_data(instance_id(uuid), want.hostname),
        user_data=seed.user_data(want.spec.user_data, login, "cloud_init.user_data"),
        network_config=network,
    )


def instance_id(uuid: str) -> str:
    """The instance id of a domain."""
    return f"vmkit-{uuid}"


def make(pool: Pool, volume: str, want: Wanted, design: Design, spec: VmSpec, uuid: str) -> tuple[str, Access]:
    """Make the volume; returns its path, and who is let in. vmkit's own key pair is made if there is none.

    Raises:
        ConflictError: there is a volume of that name.
        EffectError: it could not be written; it is gone again.
    """
    own = keys.make_own_key()
    hashed = keys.hashed(want.password) if want.password else want.spec.password
    files = compose(want, design, spec, uuid, own, hashed).files
    return put(pool, volume, files), access_of(want, own)


def put(pool: Pool, volume: str, files: Mapping[str, bytes]) -> str:
    """Make a seed volume of these files, which root and QEMU alone can read; returns its path."""
    data = seed_iso.write(files)
    if len(data) > seed_iso.LIMIT:
        raise RefusedError(
            f"the seed would be larger than {seed_iso.LIMIT} bytes",
            hint="let user-data fetch what is large, or copy it later: vmkit copy",
        )
    return pool.write(volume, data)


def reseed(pool: Pool, old: str, new: str, *, name: str, uuid: str, cards: tuple[seed.Card, ...] | None = None) -> str:
    """Make the seed of a copy: user-data as in the seed `old`, another instance id and host name.

    Args:
        pool: where both are.
        old: name of the volume that is read.
        new: name of the volume that is made.
        name: of the copy.
        uuid: of the copy.
        cards: network cards of the copy, for its network-config; None leaves out what the old one said, which named
            cards by MAC addresses that the copy does not have.

    Returns:
        The path of the new volume.

    Raises:
        NotFoundError: there is no volume `old`. ConflictError: there is a volume `new`.
        EffectError: the old seed cannot be read.
    """
    files = seed_iso.read(pool.read(old))
    config = seed.network_config(cards) if cards else None
    made = seed.Seed(seed.meta_data(instance_id(uuid), seed.hostname_of(name)), "", config).files
    return put(pool, new, {**made, "user-data": files.get("user-data", b"#cloud-config\n{}\n")})
