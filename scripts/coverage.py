"""Branch coverage of formats and machines by the unit tests: 100 %, or it fails. Run by ``scripts/check coverage``.

Which modules these are, the table of layers says (tests/unit/test_layers.py), with a few that are pure but for their imports. Unit tests
alone count: what only a simulation happens to reach has no test that says what it should do.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PURE_BUT_FOR_IMPORTS: Final = ("hdad.worker.stage", "hdad.worker.trial", "hdad.worker.turns", "hdad.record")
TESTS: Final = ("tests/unit", "tests/golden")
LEFT_OUT: Final = ("tests/unit/test_ring.py", "tests/unit/test_resp.py", "tests/unit/test_pack.py")  # of the native core


def modules() -> list[str]:
    """Paths of what must be covered."""
    sys.path.insert(0, str(ROOT))
    from tests.unit.test_layers import FORMATS, PURE

    return [f"{name.replace('.', '/')}.py" for name in sorted({*FORMATS, *PURE, *PURE_BUT_FOR_IMPORTS})]


def main() -> int:
    names = modules()
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        data = f"--data-file={folder}/coverage"
        tests = [*TESTS, *(f"--ignore={path}" for path in LEFT_OUT)]
        run = ["coverage", "run", "--branch", f"--include={','.join(names)}", data, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        report = ["coverage", "report", data, "--show-missing", "--skip-covered", "--fail-under=100", "--precision=2"]
        for command in (run, report):
            if (status := subprocess.run([*python, *command], cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode) != 0:
                return status
    print(f"branch coverage of {len(names)} formats and machines: 100 %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
