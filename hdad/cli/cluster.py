"""``hdactl cluster``: the hosts of one log as this one sees them: roles, links, who is the writer, whose lanes are whose.

A host knows what its own link reports: the writer's host knows all worker hosts, a worker host knows its way to the writer.
"""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from hdad.cli.flow import Flow
from hdad.cli.output import count, micros, seconds, size, table

HERE: Final = "this host"
NEWS_SHOWN: Final = 5
LANES_NAMED: Final = 4


def cluster_of(flow: Flow) -> dict[str, Any]:
    """What is known, for scripts. ``flow`` has two answers, so that there are rates."""
    status = flow.status
    link = status.get("link") or {}
    towards = link.get("writer")
    host_of = {slot: peer["name"] for peer in link.get("peers", ()) for slot in peer["workers"].values()}
    lanes: dict[str, list[str]] = {}
    for lane in status["lanes"]:
        owner = host_of.get(lane["worker"], HERE) if lane["worker"] >= 0 else "nobody"
        lanes.setdefault(owner, []).append(lane["name"])
    own = sum("entries_read" in role for role in status["roles"])
    role = "worker" if towards is not None else "writer"
    hosts = [{"name": HERE, "role": role, "address": ", ".join(link.get("listen", ())), "workers": own, "lanes": len(lanes.get(HERE, ()))}]
    hosts += [
        {
            "name": peer["name"], "role": "worker", "address": peer["address"], "workers": len(peer["workers"]),
            "lanes": len(lanes.get(peer["name"], ())), "secure": peer["secure"], "state": peer["phase"], "since_s": peer["since_s"],
            "rtt_us": peer["rtt_us"], "bytes_per_s": round(flow.rate(f"peer {peer['name']}"), 1), "credit_bytes": peer.get("credit_bytes"),
        }
        for peer in link.get("peers", ())
    ]  # fmt: skip
    if towards is not None:
        hosts.append({
            "name": towards["name"] or towards["address"], "role": "writer", "address": towards["address"], "secure": towards["secure"],
            "state": towards["phase"], "since_s": towards["since_s"], "rtt_us": towards["rtt_us"],
            "bytes_per_s": round(flow.rate("link bytes_out"), 1), "last_error": towards["last_error"],
        })  # fmt: skip
    return {
        "hosts": hosts, "writer": _writer(status), "lanes": lanes, "insecure": link.get("insecure", False), "ends": link.get("ends", {}),
        "news": link.get("news", []),
    }  # fmt: skip


def _writer(status: dict[str, Any]) -> dict[str, Any]:
    """Who is it, since when, and why nobody is reached."""
    towards = (status.get("link") or {}).get("writer")
    if towards is not None:
        since = towards["since_s"]
        return {"name": towards["name"] or towards["address"], "since_s": since, "why": "" if since is not None else towards["last_error"]}
    return {"name": HERE, "since_s": round((status["now_ns"] - status["daemon"]["started_at_ns"]) / 1e9, 1), "why": ""}


def page(found: dict[str, Any]) -> RenderableType:
    """For a person."""
    writer = found["writer"]
    since = f" for {seconds(writer['since_s'])}" if writer["since_s"] is not None else ", not reached"
    parts: list[RenderableType] = [
        Text.assemble("writer  ", (writer["name"], "bold"), since, f"  ({writer['why']})" if writer["why"] else ""), Text(""),
    ]  # fmt: skip
    rows = []
    for host in found["hosts"]:
        is_linked, credit = "rtt_us" in host, host.get("credit_bytes")
        rows.append((
            host["name"], host["role"], host.get("state", "") if is_linked else "", count(host["workers"]) if "workers" in host else "-",
            count(host["lanes"]) if "lanes" in host else "-", micros(host["rtt_us"] or 0) if is_linked else "-",
            f"{size(host['bytes_per_s'])}/s" if is_linked else "-", size(credit) if credit is not None else "-",
            ("TLS" if host["secure"] else "plain") if is_linked and host["secure"] is not None else "",
        ))  # fmt: skip
    headings = ("HOST", "ROLE", "LINK", "WORKERS", "LANES", "RTT", "RATE", "CREDIT", "TRUST")
    parts += [table(headings, rows, (3, 4, 5, 6, 7)), Text("")]
    for host in found["hosts"]:
        error = f", last error: {host['last_error']}" if host.get("last_error") else ""
        parts.append(Text(f"{host['name']} is at {host['address'] or 'no address'}{error}"))
    for name, lanes in sorted(found["lanes"].items()):
        more = f" and {count(len(lanes) - LANES_NAMED)} more" if len(lanes) > LANES_NAMED else ""
        parts.append(Text(f"lanes of {name}: {', '.join(lanes[:LANES_NAMED])}{more}"))
    if found["insecure"]:
        parts.append(Text("some addresses are tcp://: what goes over them is neither secret nor signed", style="yellow"))
    parts += [Text(line, style="yellow") for line in found["news"][-NEWS_SHOWN:]]
    return Group(*parts)
