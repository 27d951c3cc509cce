"""What both commands say alike. Imports nothing: hdactl starts at once, without what only the daemon needs."""

from __future__ import annotations

import os
from typing import Final

STATUSES: Final = """\b
Exit statuses:
  0 ok   1 unforeseen   2 usage   3 configuration   4 device   5 damaged log
  6 not an hdad log   7 fenced   8 busy   9 crash loop   10 drain incomplete
  11 Redis refused   12 daemon unreachable   13 findings   14 permission
  15 lapped"""


def default_path() -> str:
    """$HDAD_CONFIG, else /etc/hdad/hdad.toml."""
    return os.environ.get("HDAD_CONFIG", "/etc/hdad/hdad.toml")
