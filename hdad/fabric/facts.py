"""What is known of the device and the fabric under it, as values: one survey gives one ``Facts``. Pure; edges fill it, health judges it.

A fact that nobody told is empty: "" for texts, None for numbers. Every text comes from a kernel, a daemon or a remote port, and is bounded
and printable when it is here (``tree.clean``). ``hdactl paths --json`` prints ``Facts`` as they are: names are part of its contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import orjson

from hdad.errors import PeerProtocolError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

PATHS_MAX: Final = 256  # LIMIT: paths of one device; dm-multipath itself takes no more than some hundreds
DEV_LOSS_INFINITY: Final = 2**31 - 1  # what multipath.conf's "infinity" becomes in dev_loss_tmo, or 2**32 - 1
PORTS_MAX: Final = 256  # LIMIT: local or remote ports of one survey


@dataclass(frozen=True, slots=True)
class HostPort:
    """A Fibre Channel port of this host (``fc_host``), or the adapter that a path goes through. Speeds in the driver's words."""

    name: str  # host3; an NVMe controller's is not here but in its path
    driver: str = ""  # qla2xxx, lpfc, fcoe, iscsi_tcp, scsi_debug
    port_name: str = ""  # WWPN, 0x and 16 digits
    node_name: str = ""
    port_id: str = ""
    port_state: str = ""  # Online, Linkdown, Offline, Blocked, …
    port_type: str = ""
    speed: str = ""
    supported_speeds: str = ""
    symbolic_name: str = ""
    pci: str = ""  # address of the adapter, 0000:3b:00.0
    numa_node: int | None = None
    counters: dict[str, int] = field(default_factory=dict)  # statistics that the driver keeps; empty: not read, or none


@dataclass(frozen=True, slots=True)
class RemotePort:
    """The other end: a target port (``fc_remote_ports``). Timeouts in seconds; ``fast_io_fail_s`` None: off, or not told."""

    name: str  # rport-3:0-1
    host: str = ""
    port_name: str = ""
    node_name: str = ""
    port_id: str = ""
    port_state: str = ""  # Online, Blocked, Not Present, Marginal, …
    roles: str = ""
    dev_loss_s: int | None = None
    fast_io_fail_s: int | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """One way to the device: a SCSI disk, or an NVMe namespace on one controller. Sizes in bytes unless named otherwise."""

    name: str  # sdb, nvme0c1n1
    number: str = ""  # major:minor
    address: str = ""  # host:channel:target:lun, or the controller
    transport: str = ""  # fc, iscsi, sas, scsi, nvme-fc, nvme-tcp, nvme-rdma, nvme-loop, nvme-pcie, virtio, loop, ""
    host: str = ""  # HostPort.name
    port: str = ""  # this side: WWPN, initiator address
    remote: str = ""  # RemotePort.name, session or controller
    target: str = ""  # the other side: WWPN, iqn, transport address
    device_state: str = ""  # SCSI device or NVMe controller: running, offline, blocked, transport-offline; live, connecting, …
    remote_state: str = ""  # of the remote port: Online, Blocked, Not Present, …; of the iSCSI session: LOGGED_IN, FAILED
    recovery_s: int | None = None  # how long a lost connection holds I/O that another path could carry: iSCSI recovery_tmo, NVMe kato
    access: str = ""  # ALUA or ANA: active/optimized, active/non-optimized, standby, …; optimized, non-optimized, inaccessible, …
    in_map: bool = True  # False: the same LUN, and the map does not use it
    dm_state: str = ""  # what device-mapper thinks: active, failed
    checker: str = ""  # what multipathd's checker thinks: ready, faulty, ghost, shaky, …
    is_marginal: bool = False
    failures: int | None = None  # times that device-mapper failed this path
    vendor: str = ""
    model: str = ""
    wwid: str = ""
    size: int | None = None
    logical_block: int | None = None
    physical_block: int | None = None
    max_sectors_kb: int | None = None
    write_cache: str = ""  # write back, write through
    has_fua: bool | None = None
    timeout_s: int | None = None  # SCSI command timeout
    numa_node: int | None = None
    errors: dict[str, int] = field(default_factory=dict)  # ioerr_cnt, iotmo_cnt
    key: str | None = None  # reservation key registered through this path, 0x…; "" none; None: not asked


@dataclass(frozen=True, slots=True)
class Group:
    """A path group of dm-multipath, or all NVMe paths with one ANA state. ``paths``: names."""

    number: int
    state: str = ""  # active, enabled, disabled
    selector: str = ""
    priority: int | None = None
    is_marginal: bool = False
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reservation:
    """What the target says of persistent reservations; filled by the reservation edge. Keys as 0x…"""

    kind: str = ""  # write exclusive – registrants only, …; "": none is held
    holder: str = ""
    keys: tuple[str, ...] = ()
    ours: str = ""  # the key this host's writer registered; "": none


@dataclass(frozen=True, slots=True)
class Facts:
    """A survey. ``kind``: multipath, nvme (native multipath), single, file, missing. ``notes``: what could not be read, in words."""

    device: str  # as the configuration names it
    kind: str = "missing"
    name: str = ""  # of the kernel: dm-3, nvme0n1, sdb
    map_name: str = ""  # of device-mapper
    uuid: str = ""
    size: int | None = None
    logical_block: int | None = None
    physical_block: int | None = None
    max_sectors_kb: int | None = None
    write_cache: str = ""
    has_fua: bool | None = None
    is_suspended: bool = False
    queueing: str = ""  # without a path I/O waits: on (without limit), off (fails), "12 checks", "600 s", "40 s left"; "": not told
    policy: str = ""  # path selector or iopolicy
    features: str = ""
    hardware_handler: str = ""
    polling_s: int | None = None  # multipathd's polling_interval
    groups: tuple[Group, ...] = ()
    paths: tuple[Path, ...] = ()
    hosts: tuple[HostPort, ...] = ()
    remote_ports: tuple[RemotePort, ...] = ()
    reservation: Reservation | None = None
    sources: tuple[str, ...] = ()  # who told: sysfs, device-mapper, multipathd, statistics
    notes: tuple[str, ...] = ()
    taken_ns: int = 0  # wall clock
    has_states: bool = False  # False: device-mapper's states are still to come
    is_complete: bool = False  # False: details are still to come, or the survey was cut off

    def path(self, name: str) -> Path | None:
        """By name."""
        return next((path for path in self.paths if path.name == name), None)

    def remote_port(self, name: str) -> RemotePort | None:
        """By name."""
        return next((port for port in self.remote_ports if port.name == name), None)

    def group_of(self, path: str) -> Group | None:
        """The group that uses this path."""
        return next((group for group in self.groups if path in group.paths), None)

    def with_paths(self, changes: Mapping[str, Mapping[str, Any]]) -> Facts:
        """The same with some fields of some paths changed."""
        return replace(self, paths=tuple(replace(path, **changes.get(path.name, {})) for path in self.paths))

    def with_note(self, *notes: str) -> Facts:
        """The same with more notes, none twice."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


_KINDS: Final = (HostPort, RemotePort, Path, Group, Facts)
_DEFAULTS: Final[dict[type, dict[str, Any]]] = {
    kind: {item.name: item.default for item in fields(kind) if item.default is not MISSING} for kind in _KINDS
}


def encode(facts: Facts) -> bytes:
    """As JSON, for a pipe or a person's tool."""
    return orjson.dumps(facts)


def compact(value: Any) -> Any:
    """As plain data, without fields that are as they would be anyway: what a channel carries. ``decode`` and ``from_plain`` read it."""
    kind = type(value)
    if isinstance(value, tuple):
        return [compact(item) for item in value]
    if not is_dataclass(value):
        return value
    defaults = _DEFAULTS.get(kind, {})
    found = {item.name: getattr(value, item.name) for item in fields(value)}
    return {name: compact(item) for name, item in found.items() if item != defaults.get(name, MISSING) and item != {}}


def trimmed(facts: Facts, count: int) -> Facts:
    """The same with the first ``count`` paths only, and the ports they go through."""
    kept = facts.paths[:count]
    hosts, remotes = {path.host for path in kept}, {path.remote for path in kept}
    return replace(
        facts,
        paths=kept,
        hosts=tuple(host for host in facts.hosts if host.name in hosts),
        remote_ports=tuple(port for port in facts.remote_ports if port.name in remotes),
    ).with_note(f"only {count} of {len(facts.paths)} paths are told")


def from_plain(value: Mapping[str, Any]) -> Facts:
    """From plain data. Raises PeerProtocolError."""
    return decode(orjson.dumps(value))


@cache
def _adapter() -> TypeAdapter[Facts]:
    from pydantic import TypeAdapter  # building it takes longer than all other imports of hdactl

    return TypeAdapter(Facts)


def decode(data: bytes) -> Facts:
    """From JSON. Raises PeerProtocolError."""
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(data)
    except ValidationError as error:
        raise PeerProtocolError(f"not a survey: {error.errors()[0]['msg']}") from error
