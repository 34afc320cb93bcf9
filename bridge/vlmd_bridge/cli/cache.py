"""`vlmd cache`: what the result store holds, or empty it; through the daemon that runs, else in the file itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.cli.attach import add_socket_argument, attached_client, socket_path
from vlmd_bridge.cli.daemon_settings import cache_bounds, cache_file
from vlmd_bridge.cli.printable import printable
from vlmd_bridge.store.keeper import Keeper
from vlmd_protocol.errors import ConnectError, InvalidRequestError
from vlmd_protocol.messages import CacheResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("action", choices=("info", "clear"), help="show what it holds, or remove everything in it")
    add_socket_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Look at the store, or empty it."""
    settings = config.load({"socket": args.socket}).settings
    path = cache_file(settings)
    result = _of_daemon(args, socket_path(settings))
    if result is None or result.path != str(path):
        # The configured file is what is meant; that of a daemon with another one was shown, or emptied, besides.
        result = _of_file(args, settings, path)
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        rows = list(_rows(result))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{width}}  {printable(value)}")
    failed = args.action == "clear" and result.removed is None
    return exits.SOME_FAILED if failed else exits.OK


def _of_daemon(args: argparse.Namespace, path: Path) -> CacheResult | None:
    try:
        with attached_client(path) as client:
            return client.cache(args.action)
    except (ConnectError, InvalidRequestError):  # none runs, or one that has no store yet
        return None


def _of_file(args: argparse.Namespace, settings: config.Settings, path: Path) -> CacheResult:
    bounds = cache_bounds(settings)
    keeper = Keeper(path, bounds)
    removed = keeper.clear() if args.action == "clear" else None
    entries = keeper.count()
    keeper.close()
    return CacheResult(
        state=keeper.state,
        path=str(path),
        enabled=settings.cache,
        entries=entries,
        bytes=keeper.bytes_on_disk,
        max_bytes=bounds.max_bytes,
        max_age_s=bounds.max_age_s,
        warning=keeper.warning,
        removed=removed,
    )


def _rows(result: CacheResult) -> Iterator[tuple[str, str]]:
    if result.removed is not None:
        yield "removed", f"{result.removed} results"
    yield "file", result.path
    entries = "unknown" if result.entries is None else str(result.entries)
    size = 0 if result.bytes is None else result.bytes
    yield "results", f"{entries}, {size / 1024**2:,.1f} of {result.max_bytes / 1024**2:,.0f} MiB"
    yield "kept", f"{result.max_age_s / 86400:g} days after the last use"
    yield "used", "by default" if result.enabled else "where a job asks for it"
    if result.hits or result.misses or result.stored:
        yield "this daemon", f"{result.hits} found, {result.misses} not found, {result.stored} stored"
    if result.warning is not None:
        yield "warning", result.warning
