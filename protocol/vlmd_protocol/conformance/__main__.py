"""The command: plays the dialogues against a server and prints a table."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from vlmd_protocol.conformance.match import mismatch
from vlmd_protocol.conformance.peer import BadLine, Peer, PeerGone, Silence
from vlmd_protocol.conformance.player import DEFAULT_TIMEOUT_S
from vlmd_protocol.conformance.run import NEEDS, Outcome, choose, run

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_SERVER = 3

_STATUS = b'{"id":1,"method":"status"}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 all passed, 1 a case failed, 2 usage, 3 nobody answers at the socket."""
    args = _parser().parse_args(arguments)
    cases = choose(args.filter)
    if not cases:
        print(f"no case matches {args.filter!r}", file=sys.stderr)
        return EXIT_USAGE
    try:
        have = {*args.have, *_found(args.socket, args.timeout)}
    except (OSError, PeerGone, Silence, BadLine) as error:
        print(f"no server answers at {args.socket}: {error}", file=sys.stderr)
        return EXIT_NO_SERVER
    outcomes = []
    width = max(len(name) for name, _ in cases)
    for outcome in run(args.socket, cases, have=have, adr_socket_path=args.adr_socket, timeout_s=args.timeout):
        outcomes.append(outcome)
        if not args.json:
            print(f"{outcome.case:<{width}}  {outcome.status}  {outcome.why}".rstrip(), flush=True)
    counts = Counter(outcome.status for outcome in outcomes)
    if args.json:
        print(json.dumps({"counts": counts, "cases": [asdict(outcome) for outcome in outcomes]}, indent=2))
    else:
        print(_summary(outcomes, counts))
    return EXIT_FAILED if counts["fail"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlmd_protocol.conformance", description=__doc__)
    parser.add_argument("--socket", required=True, metavar="PATH", help="the server's socket")
    parser.add_argument("--adr-socket", metavar="PATH", help="its listener for ADR-006's adapter")
    parser.add_argument("--filter", metavar="TEXT", help="only cases whose address contains or matches this")
    parser.add_argument(
        "--have",
        action="append",
        default=[],
        choices=NEEDS,
        help="what the server offers beyond what it tells; a case that needs more is skipped",
    )
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="S", help="for each expectation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _found(socket_path: str, timeout_s: float) -> list[str]:
    """Return what `status` tells of the server."""
    peer = Peer(socket_path, ascii_only=False)
    try:
        peer.send(_STATUS, timeout_s)
        result = peer.line(timeout_s).get("result")
    finally:
        peer.close()
    models = result.get("models") if isinstance(result, dict) else None
    ready = [m for m in models or [] if mismatch({"name": {"$type": "string"}, "state": "ready"}, m) is None]
    return [*(["model"] if ready else []), *(["fake"] if any(m["name"].startswith("fake") for m in ready) else [])]


def _summary(outcomes: Sequence[Outcome], counts: Counter[str]) -> str:
    seconds = sum(outcome.seconds for outcome in outcomes)
    return (
        f"{len(outcomes)} cases: {counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped "
        f"in {seconds:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
