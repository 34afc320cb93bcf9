"""`vlmd config`: every setting, and with `--show-origin` where it comes from."""

from __future__ import annotations

import argparse
import json
import sys

from vlmd_bridge import config
from vlmd_bridge.cli import exits
from vlmd_bridge.config.settings import Value, keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--show-origin", action="store_true", help="show where each value comes from")
    parser.add_argument("--json", action="store_true", help="print one JSON object, origins included")


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    found = config.load()
    if args.json:
        settings = {
            key.name: {
                "value": found.origins[key.name].value,
                "origin": found.origins[key.name].origin,
                "variables": key.variables,
                "meaning": key.meaning,
            }
            for key in keys()
        }
        print(
            json.dumps(
                {
                    "file": str(found.file),
                    "fileExists": found.file.exists(),
                    "fingerprint": found.fingerprint,
                    "warnings": found.warnings,
                    "settings": settings,
                }
            )
        )
        return exits.OK
    for warning in found.warnings:
        print(f"vlmd: warning: {warning}", file=sys.stderr)
    print(f"# {found.file}{'' if found.file.exists() else ' (does not exist)'}")
    rows = [(key.name, _toml(found.origins[key.name].value), found.origins[key.name].origin) for key in keys()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for (name, value, origin), key in zip(rows, keys(), strict=True):
        note = origin if args.show_origin else key.meaning
        # What is not set stands as a comment, so that the output is a valid configuration file.
        mark = "# " if found.origins[key.name].value is None else ""
        print(f"{mark}{name:<{widths[0] - len(mark) + 2}} = {value:<{widths[1]}}  # {note}")
    return exits.OK


def _toml(value: Value) -> str:
    if value is None:
        return '""'
    # JSON's strings, numbers and booleans are TOML's too.
    return json.dumps(value, ensure_ascii=False)
