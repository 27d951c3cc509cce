"""The VM's parts: Debian's kernel, QEMU and tools. Fetched as packages, unpacked into a cache, never installed.

Runs on the host. The host's own root is the VM's root, so only what the host lacks is fetched. apt-get works on lists and archives of the
cache's own, so nothing of the host changes, and no rights are needed.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

PACKAGES: Final = (
    "qemu-system-x86", "busybox-static", "kmod", "multipath-tools", "udev", "sg3-utils", "lsscsi", "dmsetup", "iproute2", "procps",
)  # fmt: skip
KERNEL: Final = "linux-image-amd64"  # the generic flavour: the cloud one has no libfc, fcoe, tcm_fc
BOOT_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
KEPT_MODULES: Final = (
    "arch", "block", "crypto", "lib", "fs", "net/", "drivers/scsi", "drivers/md", "drivers/target", "drivers/virtio", "drivers/block",
    "drivers/nvme", "drivers/uio", "drivers/net/veth.ko", "drivers/net/virtio_net.ko", "drivers/net/net_failover.ko",
)  # fmt: skip
NEVER_MIXED: Final = re.compile(r"libc6_|libc-bin_")  # another libc under LD_LIBRARY_PATH ends every program
UNUSED_S: Final = 7 * 86_400
INIT: Final = Path(__file__).with_name("init.sh")


class CannotBootError(Exception):
    """No VM can run here; the text says why."""


class Parts(NamedTuple):
    """Paths: what QEMU needs. ``layer`` holds the unpacked tools, laid over the host's root in the VM."""

    qemu: str
    kernel: Path
    initrd: Path
    layer: Path
    release: str

    @property
    def library_path(self) -> str:
        """For LD_LIBRARY_PATH of programs that run on the host from the layer."""
        return ":".join(f"{self.layer}{folder}" for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib"))


def cache_folder() -> Path:
    """$HDAD_VM_CACHE, else hdad-vm in the user's cache."""
    return Path(os.environ.get("HDAD_VM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hdad-vm")


def prepare() -> Parts:
    """The parts, from the cache or the network. Raises CannotBootError."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotBootError(f"the VM is made for x86-64 Linux, this is {sys.platform} on {platform.machine()}")
    if os.environ.get("HDAD_VM_OFF"):
        raise CannotBootError("HDAD_VM_OFF is set")
    for program in ("apt-get", "dpkg", "tar"):
        if shutil.which(program) is None:
            raise CannotBootError(f"there is no {program}: the VM is made of Debian's packages")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / _key()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once fetch once
        if not folder.exists():
            print(f"hdad: making the VM in {folder}", file=sys.stderr, flush=True)
            fresh = cache / "new"
            shutil.rmtree(fresh, ignore_errors=True)
            try:
                _make(fresh, cache / "apt")
            except subprocess.CalledProcessError as error:
                said = (error.stderr or error.stdout or "").strip().splitlines()[-3:]
                raise CannotBootError(f"{shlex.join(map(str, error.cmd))[:200]}: {' / '.join(said) or error}") from error
            fresh.rename(folder)
            for old in cache.glob("v-*"):
                if time.time() - old.stat().st_mtime > UNUSED_S:  # else it may be another checkout's, with a VM on it
                    shutil.rmtree(old, ignore_errors=True)
        os.utime(folder)
    return _parts(folder)


def _key() -> str:
    """Of everything the parts are made from: a change makes them anew."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    return "v-" + hashlib.sha256("\n".join((release, Path(__file__).read_text(), INIT.read_text())).encode()).hexdigest()[:12]


def _parts(folder: Path) -> Parts:
    layer = folder / "layer"
    fetched = layer / "usr/bin/qemu-system-x86_64"
    qemu = str(fetched) if fetched.exists() else shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise CannotBootError("there is no qemu-system-x86_64")
    return Parts(qemu, folder / "kernel", folder / "initrd", layer, (folder / "release").read_text())


def _run(*argv: str, cwd: Path | None = None) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL).stdout


def _make(folder: Path, apt: Path) -> None:
    layer, boot, archives = folder / "layer", folder / "boot", folder / "archives"
    for path in (layer, boot, archives / "partial"):
        path.mkdir(parents=True)
    release = _fetch(apt, archives)
    _lay_out_usr_merge(layer)
    for package in sorted(archives.glob("*.deb")):
        if package.name.startswith("linux-image-"):
            modules = f"./*lib/modules/{release}"
            kept = [f"{modules}/modules.*", *(f"{modules}/kernel/{name}*" for name in KEPT_MODULES)]
            _unpack(package, boot, "--wildcards", "./boot/vmlinuz-*", *kept)
        elif not NEVER_MIXED.match(package.name):
            _unpack(package, layer, "--keep-directory-symlink")
    unpacked = next(path for path in (boot / "lib/modules" / release, boot / "usr/lib/modules" / release) if path.exists())
    installed = layer / "usr/lib/modules" / release
    installed.parent.mkdir(exist_ok=True)
    unpacked.rename(installed)
    kmod = layer / "usr/bin/kmod"
    depmod = str(kmod) if kmod.exists() else shutil.which("kmod") or "kmod"
    subprocess.run(["depmod", "-b", str(layer), release], executable=depmod, check=True, capture_output=True, text=True)
    kernel = next((boot / "boot").glob("vmlinuz-*"))
    (folder / "kernel").write_bytes(_uncompressed(kernel.read_bytes()))
    busybox = next((path for path in (layer / "usr/bin/busybox", Path("/usr/bin/busybox")) if path.exists()), None)
    if busybox is None:
        raise CannotBootError("there is no static busybox")
    (folder / "initrd").write_bytes(gzip.compress(_initrd(busybox, installed), 1))
    (folder / "release").write_text(release)
    for path in (boot, archives):
        shutil.rmtree(path)


def _fetch(apt: Path, archives: Path) -> str:
    """Download what is needed. Returns the kernel's release."""
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    options = [
        "-q", "-o", f"Dir::State::lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}", "-o", f"Dir::Cache::archives={archives}",
        "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    updated = subprocess.run(["apt-get", *options, "update"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        depends = _run("apt-cache", *options, "depends", KERNEL)
    except subprocess.CalledProcessError as error:  # a source that fails does not matter, unless it is the kernel's
        raise CannotBootError(f"no package {KERNEL}: {(updated.stderr or error.stderr).strip()[-300:]}") from error
    found = re.search(r"Depends: linux-image-(\d\S+)", depends)
    if found is None:
        raise CannotBootError(f"{KERNEL} depends on no linux-image: {depends!r}")
    _run("apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES, cwd=archives)
    _run("apt-get", *options, "download", f"linux-image-{found[1]}", cwd=archives)
    return found[1]


def _lay_out_usr_merge(layer: Path) -> None:
    """Debian's usr-merge, made beforehand: packages unpack into /bin and /lib still, and the links must not be replaced."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (layer / "usr" / name).mkdir(parents=True)
        (layer / name).symlink_to(f"usr/{name}")


def _unpack(package: Path, folder: Path, *options: str) -> None:
    with subprocess.Popen(["dpkg", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
        # Owners and modes that this user cannot give do not matter in the VM, nor do patterns that match nothing.
        found = subprocess.run(
            ["tar", "-x", "-C", str(folder), "--no-same-owner", *options], stdin=archive.stdout, capture_output=True, text=True, check=False
        )
    if archive.returncode or (found.returncode and "Not found in archive" not in found.stderr):
        raise CannotBootError(f"{package.name} does not unpack: {found.stderr.strip()[-300:]}")


def _uncompressed(image: bytes) -> bytes:
    """The vmlinux in a bzImage (its header: Documentation/x86/boot.rst). Saves 2.5 s of decompression in an emulated VM.

    QEMU starts it by its PVH note. A compression that Python does not know stays as it is.
    """
    offset, size = struct.unpack_from("<II", image, 0x248)
    payload = image[((image[0x1F1] or 4) + 1) * 512 + offset :][:size]
    return lzma.LZMADecompressor().decompress(payload) if payload[:6] == b"\xfd7zXZ\0" else image


def _initrd(busybox: Path, modules: Path) -> bytes:
    files: list[tuple[str, int, bytes]] = [
        (name, 0o40755, b"") for name in ("bin", "dev", "proc", "sys", "host", "layer", "upper", "root", "modules")
    ]
    files += [("bin/busybox", 0o100755, busybox.read_bytes()), ("init", 0o100755, INIT.read_bytes())]
    for index, path in enumerate(_needed(modules)):
        content = (modules / path).read_bytes()
        if path.endswith(".xz"):
            content = lzma.decompress(content)
        files.append((f"modules/{index:02}-{Path(path).name.partition('.')[0]}.ko", 0o100644, content))
    return _cpio(files)


def _needed(modules: Path) -> list[str]:
    """Files of BOOT_MODULES and of what they depend on, in the order in which they must be loaded."""
    depends = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        depends[path] = others.split()
    order: list[str] = []
    for name in BOOT_MODULES:
        path = next((path for path in depends if Path(path).name.partition(".")[0] == name), None)
        if path is not None:  # else it is built in
            order += [other for other in (*reversed(depends[path]), path) if other not in order]
    return order


def _cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A "newc" archive: (name, mode, content) each."""
    parts = []
    for inode, (name, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)
