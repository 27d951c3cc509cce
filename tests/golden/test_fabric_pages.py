"""What ``hdactl paths`` shows of each fixture, to the letter.

After a wanted change of the page: python -m tests.golden.test_fabric_pages writes them anew; read the diff.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hdad.cli.paths import Look, page
from hdad.fabric.health import Expectations, condition, judge
from hdad.fabric.trends import History
from tests import fabric

PAGES = Path(__file__).parent / "fabric"
WIDE, NARROW = 400, 80
CASES = [
    ("fc-qla2xxx", "/dev/mapper/hdad", WIDE), ("fc-qla2xxx", "/dev/sdb", WIDE), ("fc-lpfc", "/dev/mapper/hdad", WIDE),
    ("fc-lpfc", "/dev/mapper/hdad", NARROW), ("iscsi", "/dev/mapper/hdad", WIDE), ("nvme-fc", "/dev/nvme0n1", WIDE),
    ("fcoe-one-link-cut", "/dev/mapper/hdad", WIDE), ("fcoe-both-cut", "/dev/mapper/hdad", WIDE),
    ("scsi-debug", "/dev/mapper/mpatha", WIDE), ("plain", "/dev/vda", WIDE), ("plain", "/dev/vda1", WIDE), ("plain", "/dev/nvme0n1", WIDE),
    ("plain", "/dev/mapper/vg-data", WIDE), ("plain", "/dev/mapper/vg-hdad", WIDE), ("plain", "/dev/none", WIDE),
]  # fmt: skip


def shown(name: str, device: str, width: int, folder: Path) -> str:
    """The page of a survey that follows an earlier one, ten seconds before, with fewer errors."""
    facts = replace(fabric.read(fabric.unpack(name, folder), device), taken_ns=20_000_000_000)
    earlier = [replace(host, counters={counter: value // 2 for counter, value in host.counters.items()}) for host in facts.hosts]
    history = History(condition)
    history.feed(replace(facts, hosts=tuple(earlier), paths=facts.paths[1:], taken_ns=10_000_000_000))
    trends = history.feed(facts)
    console = Console(width=width, file=io.StringIO(), highlight=False, soft_wrap=True)
    console.print(page(Look(facts, judge(facts, Expectations(takeover_s=15, writer_nodes=frozenset({0})), trends), trends)))
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def stored(name: str, device: str, width: int) -> Path:
    return PAGES / f"{name}-{Path(device).name}{'-narrow' if width == NARROW else ''}.txt"


@pytest.mark.parametrize(("name", "device", "width"), CASES)
def test_the_page_is_as_it_was(name: str, device: str, width: int, tmp_path: Path) -> None:
    found = shown(name, device, width, tmp_path)
    assert found == stored(name, device, width).read_text()
    assert "…" not in found.replace("/dev/mapper/…", ""), "nothing is cut"
    facts = [line for line in found.split("\nBAD ")[0].splitlines()[1:] if not line.lstrip().startswith("errors")]
    assert width == WIDE or max(map(len, facts)) <= NARROW


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            stored(*case).write_text(shown(*case, Path(place)))
