"""Write the generated files, or tell which ones are not what they should be."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol_gen import reference, schema, typescript

ROOT = Path(__file__).resolve().parent.parent.parent

# What a failed check shows of a difference.
_MAX_DIFF_LINES = 40


def generate() -> dict[str, str]:
    """Return the text of each generated file, by its path in the repository."""
    made = schema.build()
    return {
        "protocol/vlmd_protocol/schema/v1.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n",
        "clients/typescript/src/protocol.gen.ts": typescript.render(made),
        "docs/protocol.md": reference.render(made),
        "protocol/SPEC.md": reference.with_codes((ROOT / "protocol/SPEC.md").read_text(encoding="utf-8")),
    }


def differences(root: Path = ROOT) -> list[str]:
    """Return a diff for each file under `root` that is not what the sources make."""
    found = []
    for name, text in generate().items():
        path = root / name
        committed = path.read_text(encoding="utf-8") if path.exists() else ""
        if committed != text:
            rows = list(difflib.unified_diff(committed.splitlines(), text.splitlines(), name, "generated", lineterm=""))
            found.append("\n".join(rows[:_MAX_DIFF_LINES]))
    return found


def write(root: Path = ROOT) -> None:
    """Write every file under `root`."""
    for name, text in generate().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="scripts/generate_protocol", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a committed file differs")
    if not parser.parse_args(arguments).check:
        write()
        return 0
    found = differences()
    for difference in found:
        print(difference)
    if found:
        print("generated files differ from their source; run scripts/generate_protocol", file=sys.stderr)
        return 1
    print(f"{len(generate())} generated files are up to date")
    return 0
