"""What sysfs tells of a device: its kind, its paths, the ports they go through. Edge; one function a thing, read once, nothing remembered.

Sources: Documentation/ABI/ of Linux (sysfs-block, sysfs-block-dm, sysfs-class-fc_host, -fc_remote_ports, -iscsi_session), and its
drivers/scsi/scsi_sysfs.c, scsi_transport_fc.c, nvme/host/sysfs.c and multipath.c. ``read_device`` touches only attributes that the kernel
keeps in memory, so it does not block, whatever the fabric does; ``read_statistics`` asks the adapter.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from typing import Final, NamedTuple

from hdad.fabric.facts import PATHS_MAX, PORTS_MAX, Facts, HostPort, Path, RemotePort
from hdad.fabric.tree import Tree

DEPTH_MAX: Final = 8  # LIMIT: devices stacked on each other, looked through for a map
SECTOR: Final = 512  # sysfs' unit of sizes, whatever the block size
HOST: Final = re.compile(r"host\d+")
RPORT: Final = re.compile(r"rport-\d+:\d+-\d+")
SESSION: Final = re.compile(r"session\d+")
PCI: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
SCSI: Final = re.compile(r"\d+:\d+:\d+:\d+")
OTHER_KINDS: Final = (("vd", "virtio"), ("loop", "loop"), ("dm-", "device-mapper"), ("ram", "ram"), ("zram", "ram"), ("nbd", "nbd"))
NVME_HEAD: Final = re.compile(r"nvme(\d+)n(\d+)")
NVME_PATH: Final = re.compile(r"nvme(\d+)c(\d+)n(\d+)")
NVME_PORT_NAME: Final = re.compile(r"(?:^|[,\s])(host_)?traddr=(?:nn-0x[0-9a-f]+:pn-)?([^,\s]+)")
UNKNOWN_COUNTER: Final = 2**64 - 1  # a driver that does not count says -1 (scsi_transport_fc.h)


class Located(NamedTuple):
    """``name``: of the kernel, "" if there is none. ``is_file``: a regular file; ``name`` is then the device of its filesystem."""

    name: str
    is_file: bool


def locate(tree: Tree, device: str) -> Located:
    """The kernel's name for a device path. By its number; by its name where the path is not there (a captured tree)."""
    try:
        status = os.stat(device)
    except OSError:
        return Located(_by_name(tree, device), False)
    is_file = not stat.S_ISBLK(status.st_mode)
    number = status.st_dev if is_file else status.st_rdev
    found = tree.real(f"dev/block/{os.major(number)}:{os.minor(number)}")
    return Located(os.path.basename(found), is_file)


def _by_name(tree: Tree, device: str) -> str:
    name = os.path.basename(device)
    if tree.exists(f"class/block/{name}"):
        return name
    for candidate in tree.names("block"):
        if candidate.startswith("dm-") and tree.text(f"block/{candidate}/dm/name") == name:
            return candidate
    return ""


def read_device(tree: Tree, device: str) -> Facts:
    """Everything of ``device`` that sysfs knows without asking hardware. Never raises; what is missing is empty."""
    name, is_file = locate(tree, device)
    facts = Facts(device=device, sources=("sysfs",))
    if not name:
        return facts if not is_file else replace(facts, kind="file")
    carrier = _carrier(tree, name)
    facts = _read_queue(tree, replace(facts, name=carrier or name))
    if is_file:
        return replace(facts, kind="file")
    if not carrier:
        return replace(facts, kind="single").with_note(f"{name} lies on several devices; none of them is examined")
    if carrier != name:
        facts = facts.with_note(f"{device} is {name}, which lies on {carrier}")
    if tree.text(f"block/{carrier}/dm/uuid").startswith("mpath-"):
        return _with_ports(tree, _read_map(tree, facts))
    if NVME_HEAD.fullmatch(carrier) and (paths := _nvme_paths(tree, carrier)):
        subsystem = os.path.dirname(tree.real(f"block/{carrier}"))
        policy, wwid = tree.text(f"{subsystem}/iopolicy"), tree.text(f"block/{carrier}/wwid")
        facts = replace(facts, kind="nvme", map_name=carrier, uuid=wwid, policy=policy, paths=tuple(paths))
        return _with_ports(tree, replace(facts, queueing=_nvme_queueing(tree, facts)))
    return _with_ports(tree, replace(facts, kind="single", paths=(read_path(tree, carrier),)))


def refresh(tree: Tree, facts: Facts) -> Facts:
    """The same with the states as they are now: a few attributes a path, all kept in memory, for a loop that must not wait."""
    ports = {port.name: tree.text(f"class/fc_remote_ports/{port.name}/port_state") or "Not Present" for port in facts.remote_ports}
    hosts = {host.name: tree.text(f"class/fc_host/{host.name}/port_state") for host in facts.hosts if host.port_name}
    paths = []
    for path in facts.paths:
        folder = f"class/nvme/{path.remote}" if path.transport.startswith("nvme") else f"block/{path.name}/device"
        state = tree.text(f"{folder}/state") or ("deleted" if path.device_state else "")
        paths.append(replace(path, device_state=state, remote_state=ports.get(path.remote, path.remote_state)))
    return replace(
        facts,
        paths=tuple(paths),
        hosts=tuple(replace(host, port_state=hosts.get(host.name, "")) for host in facts.hosts),
        remote_ports=tuple(replace(port, port_state=ports[port.name]) for port in facts.remote_ports),
        is_suspended=tree.text(f"block/{facts.name}/dm/suspended") == "1",
    )


def _carrier(tree: Tree, name: str) -> str:
    """Down from a partition or a volume to the map or disk it lies on; "" if there are several."""
    for _ in range(DEPTH_MAX):
        directory = tree.real(f"class/block/{name}") or tree.real(f"block/{name}")
        if tree.exists(f"{directory}/partition"):
            name = os.path.basename(os.path.dirname(directory))
            continue
        if tree.text(f"block/{name}/dm/uuid").startswith("mpath-"):
            return name
        slaves = tree.names(f"block/{name}/slaves")
        if not slaves:
            return name
        if len(slaves) > 1:
            return ""
        name = slaves[0]
    return name


def _read_queue(tree: Tree, facts: Facts) -> Facts:
    queue, sectors = f"block/{facts.name}/queue", tree.number(f"block/{facts.name}/size")
    fua = tree.text(f"{queue}/fua")
    return replace(
        facts,
        size=sectors * SECTOR if sectors is not None else None,
        logical_block=tree.number(f"{queue}/logical_block_size"),
        physical_block=tree.number(f"{queue}/physical_block_size"),
        max_sectors_kb=tree.number(f"{queue}/max_sectors_kb"),
        write_cache=tree.text(f"{queue}/write_cache"),
        has_fua=fua != "0" if fua else None,
    )


def _read_map(tree: Tree, facts: Facts) -> Facts:
    dm = f"block/{facts.name}/dm"
    slaves = tree.names(f"block/{facts.name}/slaves")[:PATHS_MAX]
    paths = [read_path(tree, slave) for slave in slaves]
    wwids = {path.wwid for path in paths if path.wwid}
    others = [name for name in tree.names("block") if name.startswith("sd") and name not in slaves] if wwids else []
    strays = [name for name in others if tree.text(f"{tree.real(f'block/{name}/device')}/wwid") in wwids]
    paths += [replace(read_path(tree, name), in_map=False) for name in strays[: PATHS_MAX - len(paths)]]
    return replace(
        facts,
        kind="multipath",
        map_name=tree.text(f"{dm}/name"),
        uuid=tree.text(f"{dm}/uuid").removeprefix("mpath-"),
        is_suspended=tree.text(f"{dm}/suspended") == "1",
        paths=tuple(paths),
    )


def read_path(tree: Tree, name: str) -> Path:
    """One disk, as the kernel sees it: a SCSI disk, an NVMe path, or what else carries blocks."""
    where = tree.real(f"block/{name}")
    queue = tree.real(f"block/{name}/queue") or f"{where}/queue"
    device = tree.real(f"block/{name}/device")
    sectors, fua = tree.number(f"{where}/size"), tree.text(f"{queue}/fua")
    path = Path(
        name,
        number=tree.text(f"{where}/dev"),
        size=sectors * SECTOR if sectors is not None else None,
        logical_block=tree.number(f"{queue}/logical_block_size"),
        physical_block=tree.number(f"{queue}/physical_block_size"),
        max_sectors_kb=tree.number(f"{queue}/max_sectors_kb"),
        write_cache=tree.text(f"{queue}/write_cache"),
        has_fua=fua != "0" if fua else None,
        numa_node=_numa_node(tree, where),
    )
    if NVME_PATH.fullmatch(name) or NVME_HEAD.fullmatch(name):
        return _nvme_path(tree, path, where, device)
    if SCSI.fullmatch(os.path.basename(device)):
        return _scsi_path(tree, path, device)
    kind = next((kind for prefix, kind in OTHER_KINDS if name.startswith(prefix)), "")
    return replace(path, transport=kind)


def _scsi_path(tree: Tree, path: Path, device: str) -> Path:
    parts = device.split("/")
    host = next((part for part in reversed(parts) if HOST.fullmatch(part)), "")
    rport = next((part for part in parts if RPORT.fullmatch(part)), "")
    session = next((part for part in parts if SESSION.fullmatch(part)), "")
    errors = {name: value for name in ("ioerr_cnt", "iotmo_cnt") if (value := tree.number(f"{device}/{name}", 0)) is not None}
    path = replace(
        path,
        address=parts[-1],
        transport="fc" if rport else "iscsi" if session else "sas" if any(part.startswith("end_device-") for part in parts) else "scsi",
        host=host,
        remote=rport or session,
        device_state=tree.text(f"{device}/state"),
        access=tree.text(f"{device}/access_state"),
        vendor=tree.text(f"{device}/vendor"),
        model=tree.text(f"{device}/model"),
        wwid=tree.text(f"{device}/wwid"),
        timeout_s=tree.number(f"{device}/timeout"),
        errors=errors,
    )
    if session:
        folder = f"class/iscsi_session/{session}"
        connection = f"class/iscsi_connection/connection{session.removeprefix('session')}:0"
        portal = ":".join(filter(None, (tree.text(f"{connection}/persistent_address"), tree.text(f"{connection}/persistent_port"))))
        return replace(
            path,
            port=tree.text(f"class/iscsi_host/{host}/ipaddress") or tree.text(f"{folder}/initiatorname"),
            target=" ".join(filter(None, (tree.text(f"{folder}/targetname"), portal))),
            remote_state=tree.text(f"{folder}/state"),
            recovery_s=tree.number(f"{folder}/recovery_tmo"),
        )
    return path


def _nvme_paths(tree: Tree, head: str) -> list[Path]:
    """The hidden disks of a namespace that native multipath joins: nvme<subsystem>c<controller>n<namespace>."""
    match = NVME_HEAD.fullmatch(head)
    assert match is not None
    names = tree.names(f"block/{head}/multipath") or tree.names("block")
    found = [name for name in names if (path := NVME_PATH.fullmatch(name)) and (path[1], path[3]) == match.groups()]
    return [read_path(tree, name) for name in found[:PATHS_MAX]]


def _nvme_queueing(tree: Tree, facts: Facts) -> str:
    """How long I/O waits when no controller is connected: until the last is given up, or told to fail fast (nvmf-connect(1))."""
    folders = [f"class/nvme/{path.remote}" for path in facts.paths]
    told = [(tree.text(f"{folder}/fast_io_fail_tmo"), tree.text(f"{folder}/ctrl_loss_tmo")) for folder in folders]
    limits = [_tmo(fast) if _tmo(fast) is not None else _tmo(loss) for fast, loss in told if fast or loss]
    if not limits:
        return ""
    return "on" if None in limits else f"{max(limit for limit in limits if limit is not None)} s"


def _nvme_path(tree: Tree, path: Path, where: str, device: str) -> Path:
    controller = os.path.basename(device) if re.fullmatch(r"nvme\d+", os.path.basename(device)) else ""
    if not controller:  # a path's own folder lies in its controller's
        controller = next((part for part in reversed(where.split("/")[:-1]) if re.fullmatch(r"nvme\d+", part)), "")
    folder = f"class/nvme/{controller}"
    ends = {bool(host): value for host, value in NVME_PORT_NAME.findall(tree.text(f"{folder}/address"))}
    transport = tree.text(f"{folder}/transport")
    return replace(
        path,
        address=controller,
        transport=f"nvme-{transport}" if transport else "nvme",
        remote=controller,
        port=ends.get(True, ""),
        target=ends.get(False, ""),
        device_state=tree.text(f"{folder}/state"),
        access=tree.text(f"{where}/ana_state"),
        model=tree.text(f"{folder}/model"),
        wwid=tree.text(f"{where}/wwid"),
        recovery_s=tree.number(f"{folder}/kato"),
        numa_node=path.numa_node if path.numa_node is not None else _node(tree.number(f"{folder}/numa_node")),
    )


def _tmo(text: str) -> int | None:
    """``off`` and numbers below zero: no limit."""
    return int(text) if text.isdigit() else None


# -- ports -------------------------------------------------------------------------------------------------------------------------------


def _with_ports(tree: Tree, facts: Facts) -> Facts:
    """The adapters' and targets' ports of the paths; all Fibre Channel ports of the host if a path is Fibre Channel."""
    is_fc = any(path.transport in ("fc", "nvme-fc") for path in facts.paths)
    names = dict.fromkeys([*(tree.names("class/fc_host") if is_fc else ()), *(path.host for path in facts.paths if path.host)])
    hosts = [read_host(tree, name) for name in list(names)[:PORTS_MAX]]
    remotes = dict.fromkeys(path.remote for path in facts.paths if RPORT.fullmatch(path.remote))
    ports = [read_remote_port(tree, name) for name in list(remotes)[:PORTS_MAX]]
    by_name, by_port = {host.name: host for host in hosts}, {host.port_name: host for host in hosts if host.port_name}
    remote = {port.name: port for port in ports}
    paths = []
    for path in facts.paths:
        host = by_name.get(path.host) or by_port.get(path.port)
        paths.append(
            replace(
                path,
                host=host.name if host is not None else path.host,
                port=path.port or (host.port_name if host is not None else ""),
                target=path.target or (remote[path.remote].port_name if path.remote in remote else ""),
                remote_state=path.remote_state or (remote[path.remote].port_state if path.remote in remote else ""),
                numa_node=path.numa_node if path.numa_node is not None or host is None else host.numa_node,
            )
        )
    return replace(facts, hosts=tuple(hosts), remote_ports=tuple(ports), paths=tuple(paths))


def read_host(tree: Tree, name: str) -> HostPort:
    """One SCSI host; with its port if it is Fibre Channel. Without statistics."""
    where = tree.real(f"class/fc_host/{name}") or tree.real(f"class/scsi_host/{name}")
    port = f"class/fc_host/{name}"
    pci = [part for part in where.split("/") if PCI.fullmatch(part)]
    return HostPort(
        name,
        driver=tree.text(f"class/scsi_host/{name}/proc_name"),
        port_name=tree.text(f"{port}/port_name"),
        node_name=tree.text(f"{port}/node_name"),
        port_id=tree.text(f"{port}/port_id"),
        port_state=tree.text(f"{port}/port_state"),
        port_type=tree.text(f"{port}/port_type"),
        speed=tree.text(f"{port}/speed"),
        supported_speeds=tree.text(f"{port}/supported_speeds"),
        symbolic_name=tree.text(f"{port}/symbolic_name"),
        pci=pci[-1] if pci else "",
        numa_node=_numa_node(tree, where),
    )


def read_remote_port(tree: Tree, name: str) -> RemotePort:
    """One ``fc_remote_ports`` entry."""
    port = f"class/fc_remote_ports/{name}"
    return RemotePort(
        name,
        host=f"host{name.removeprefix('rport-').partition(':')[0]}",
        port_name=tree.text(f"{port}/port_name"),
        node_name=tree.text(f"{port}/node_name"),
        port_id=tree.text(f"{port}/port_id"),
        port_state=tree.text(f"{port}/port_state"),
        roles=tree.text(f"{port}/roles"),
        dev_loss_s=tree.number(f"{port}/dev_loss_tmo"),
        fast_io_fail_s=_tmo(tree.text(f"{port}/fast_io_fail_tmo")),
    )


def read_statistics(tree: Tree, host: str) -> dict[str, int]:
    """The counters of one Fibre Channel port. May wait for the adapter's firmware: some drivers send it a command for each attribute."""
    folder = f"class/fc_host/{host}/statistics"
    found = {}
    for name in tree.names(folder):
        if name != "reset_statistics" and (value := tree.number(f"{folder}/{name}", 0)) is not None and value != UNKNOWN_COUNTER:
            found[name] = value
    return found


def _numa_node(tree: Tree, where: str) -> int | None:
    """Of the nearest ancestor that has one."""
    while where:
        if tree.exists(f"{where}/numa_node"):
            return _node(tree.number(f"{where}/numa_node"))
        where = os.path.dirname(where)
    return None


def _node(number: int | None) -> int | None:
    return number if number is not None and number >= 0 else None
