"""The schema against ``tests/data/schema-v1-baseline.json``: within a protocol number only optional things are added.

The baseline is the schema that clients in use were made for. After a release, and before the first one, it is brought
up to date with a copy of ``protocol/vlmd_protocol/schema/v1.json``; what the test refuses is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol_gen import schema, source

BASELINE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "schema-v1-baseline.json").read_text())

# A bound may be loosened, not tightened.
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def breaks(old: Any, new: Any, where: str, *, from_client: bool) -> Iterator[str]:
    """Yield what a peer that follows the old schema would stumble over."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for key in old.get("properties", {}):
        if key not in new.get("properties", {}):
            yield f"{where}.{key} is gone"
        else:
            yield from breaks(old["properties"][key], new["properties"][key], f"{where}.{key}", from_client=from_client)
    added, removed = (
        set(new.get("required", [])) - set(old.get("required", [])),
        set(old.get("required", [])) - set(new.get("required", [])),
    )
    if added:
        yield f"{where} needs {', '.join(sorted(added))}, which older peers do not send"
    if removed and not from_client:
        yield f"{where} may lack {', '.join(sorted(removed))}, which older clients read"
    if gone := set(old.get("enum", [])) - set(new.get("enum", [])):
        yield f"{where} lost {', '.join(sorted(gone))}"
    if old.get("const") != new.get("const") or old.get("type") != new.get("type"):
        yield f"{where} is something else"
    for keyword in (*LOWER, *UPPER):
        bound = new.get(keyword)
        limit = old.get(keyword)
        if bound is not None and (limit is None or (bound > limit if keyword in LOWER else bound < limit)):
            yield f"{where}: {keyword} was {limit}, is {bound}"
    if "items" in old:
        yield from breaks(old["items"], new.get("items"), f"{where}[]", from_client=from_client)


def found(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    clients = {cls.__name__ for cls in source.client_types()} | {"ClientInfo", "ImageRef", "ChatMessage"}
    problems = []
    for name, definition in old["$defs"].items():
        if name not in new["$defs"]:
            problems.append(f"{name} is gone")
        else:
            from_client = name in clients or name.endswith("Request")
            problems += breaks(definition, new["$defs"][name], name, from_client=from_client)
    return problems


def test_nothing_breaks_an_older_peer() -> None:
    assert found(BASELINE, schema.build()) == []


def test_additions_are_free() -> None:
    made = schema.build()
    made["$defs"]["Later"] = {"type": "object", "properties": {}}
    made["$defs"]["PingResult"]["properties"]["later"] = {"type": "string"}
    made["$defs"]["RequestCode"]["enum"].append("of_tomorrow")
    made["$defs"]["DescribeParams"]["properties"]["batchSize"]["maximum"] *= 2
    assert found(BASELINE, made) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.pop("PingResult"), "PingResult is gone"),
        (lambda d: d["PingResult"]["properties"].pop("uptimeS"), "PingResult.uptimeS is gone"),
        (lambda d: d["PingResult"]["required"].append("later"), "PingResult needs later"),
        (lambda d: d["PingResult"]["required"].remove("state"), "PingResult may lack state"),
        (lambda d: d["CancelParams"]["required"].append("later"), "CancelParams needs later"),
        (lambda d: d["RequestCode"]["enum"].remove("busy"), "RequestCode lost busy"),
        (lambda d: d["PingResult"]["properties"].update(uptimeS={"type": "string"}), "uptimeS is something else"),
        (lambda d: d["DescribeParams"]["properties"]["batchSize"].update(maximum=8), "maximum was 256, is 8"),
        (lambda d: d["DescribeParams"]["properties"]["images"].update(minItems=2), "minItems was 1, is 2"),
    ],
)
def test_what_breaks_one_is_found(change: Any, why: str) -> None:
    made = schema.build()
    change(made["$defs"])
    assert any(why in problem for problem in found(BASELINE, made))
