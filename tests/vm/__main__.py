"""``scripts/vm``: the VM for people, and its tests with their summary."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.vm.packages import CannotBootError, prepare
from tests.vm.qemu import run_in_vm, usable_kvm
from tests.vm.shares import LIMIT_S, RUNS, run
from tests.vm.summary import line_of, page


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/vm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="fetch and unpack what the VM is made of; nothing is installed")
    for name, words in (("shell", "a shell in a VM"), ("run", "a command in a VM; its exit status is this one's")):
        command = commands.add_parser(name, help=words)
        command.add_argument("-m", "--memory", type=int, default=2048, metavar="MIB")
        command.add_argument("-t", "--seconds", type=float, default=None, help="end the VM after so long")
        if name == "run":
            command.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    command = commands.add_parser("test", help="all tests that need the VM, or those that pytest's ARGUMENTs choose")
    command.add_argument("--json", action="store_true", help="one JSON line at the end")
    command.add_argument("--vms", type=int, default=RUNS, metavar="N", help=f"so many VMs side by side (default {RUNS})")
    command.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help=f"give up after so long (default {LIMIT_S:g})")
    options, rest = parser.parse_known_args()
    if rest and options.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "prepare":
            parts = prepare()
            print(f"kernel {parts.release}, {parts.qemu}, {'kvm' if usable_kvm() else 'software emulation'}")
            return 0
        if options.command == "test":
            return _test([word for word in rest if word != "--"], options)
        argv = ["bash", "-i"] if options.command == "shell" else [word for word in options.argv if word != "--"] or ["true"]
        with tempfile.TemporaryDirectory(prefix="hdad-vm-") as folder:
            return run_in_vm(
                argv, seconds=options.seconds, memory_mib=options.memory, interactive=options.command == "shell", out=Path(folder) / "out"
            )
    except CannotBootError as error:
        print(f"hdad: no VM: {error}", file=sys.stderr)
        return 1


def _test(arguments: list[str], options: argparse.Namespace) -> int:
    began = time.monotonic()
    with suppress(CannotBootError):  # then each test says so
        prepare()  # once, before two runs ask for it
    with tempfile.TemporaryDirectory(prefix="hdad-vm-") as folder:
        status, facts = run(arguments, Path(folder), options.vms, options.limit)
    print("\n".join(page(facts)))
    if options.json:
        print(json.dumps(line_of(facts, time.monotonic() - began)))
    return status


if __name__ == "__main__":
    sys.exit(main())
