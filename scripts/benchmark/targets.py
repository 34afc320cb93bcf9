"""Every target of speed, and how it stands."""

from __future__ import annotations

import msgspec

from benchmark.figures import Verdict, judge
from benchmark.latency import Beside, Dispatch
from benchmark.race import ADR, INSTALLED, LIMIT, PRELOADED, Race
from benchmark.repeats import Again, Recording
from benchmark.scale import Size

_SERVERS = ("mlx_vlm.server", "vllm-mlx")

# Over decoding, what a frame from the store may cost.
_STORE_MS = 2.0

# What "flat" allows a worker to grow from the second quarter of its longest job to the last.
_FLAT = 1.05


class Results(msgspec.Struct, kw_only=True):
    """What one run of the bench found; a part that has not run, or is not available, is None."""

    mode: str
    date: str = ""
    facts: dict[str, str] = {}
    notes: list[str] = []
    race: Race | None = None
    sizes: list[Size] | None = None
    recording: Recording | None = None
    again: Again | None = None
    dispatch: Dispatch | None = None
    beside: Beside | None = None
    fairness: float | None = None


def verdicts(results: Results) -> list[Verdict]:
    """Return the targets in the order of the issue's table."""
    return [
        *_race(results.race),
        *_recording(results.recording),
        _again(results.again),
        *_latency(results.dispatch, results.beside),
        *_sizes(results.sizes),
    ]


def _race(race: Race | None) -> list[Verdict]:
    rows = (
        ("best peer server, as installed", _SERVERS, INSTALLED, 8, 10),
        ("ADR-006 loop, as installed", (ADR,), INSTALLED, 5, 6),
        ("best of all, OpenBLAS preloaded", (*_SERVERS, ADR), PRELOADED, 2.2, 2.5),
    )
    found = []
    for what, marks, kind, least, aim in rows:
        hardest = race.hardest(marks, kind) if race else None
        measured = "" if hardest is None else f"{hardest[1].text()} x {hardest[0]}"
        value = None if hardest is None else hardest[1].median
        found.append(judge(f"vlmd / {what}", value, least=least, aim=aim, unit="x", measured=measured))
    limit = race.ratio(LIMIT) if race else None
    found.append(
        judge(
            "vlmd / the limit",
            None if limit is None else limit.median,
            least=0.90,
            aim=0.95,
            measured="" if limit is None else limit.text(),
        )
    )
    alone = race.same_as_alone / race.compared_alone if race else None
    text = f"{race.same_as_alone} of {race.compared_alone}" if race else ""
    found.append(judge("vlmd's records equal to its own alone", alone, least=1, measured=text))
    return found


def _recording(recording: Recording | None) -> list[Verdict]:
    if recording is None:
        why = "not available"
        return [
            judge("recording: unchanged frames skipped", None, least=0.9, aim=0.97, measured=why),
            judge("recording: stale records", None, least=1, below=True, measured=why),
            judge(
                "recording: wall / (decode + inference of the rest)",
                None,
                least=1.25,
                aim=1.1,
                below=True,
                measured=why,
            ),
        ]
    skipped = f"{recording.skipped_share:.1%} of {recording.unchanged}"
    return [
        judge("recording: unchanged frames skipped", recording.skipped_share, least=0.9, aim=0.97, measured=skipped),
        judge("recording: stale records", recording.stale, least=1, below=True, measured=str(recording.stale)),
        judge(
            "recording: wall / (decode + inference of the rest)", recording.over_needed, least=1.25, aim=1.1, below=True
        ),
    ]


def _again(again: Again | None) -> Verdict:
    what = "store: a frame asked again, over its decoding"
    if again is None:
        return judge(what, None, least=_STORE_MS, below=True, unit=" ms", measured="not available")
    over = again.second_ms - again.decode_ms
    measured = (
        f"{over:.2f} ms ({again.second_ms:.1f} ms, {again.second_ms / again.first_ms:.0%} of the first run's; "
        f"{again.cached} of {again.frames} from the store, {again.differing} differ)"
    )
    return judge(what, over, least=_STORE_MS, below=True, unit=" ms", measured=measured)


def _latency(dispatch: Dispatch | None, beside: Beside | None) -> list[Verdict]:
    overhead = None if dispatch is None else dispatch.batch_ms
    text = ""
    if dispatch is not None:
        whole, decode = dispatch.round_trip_ms, dispatch.decode_ms
        text = f"{dispatch.batch_ms:.2f} ms (whole daemon, fake engine: {whole:.1f} ms, {decode:.1f} of it decoding)"
    ping = None if beside is None else beside.ping_p99_ms
    ratio = None if beside is None else beside.first_token_ratio
    return [
        judge("framing + dispatch + socket, a batch, median", overhead, least=1, below=True, unit=" ms", measured=text),
        judge("ping p99 while inference saturates", ping, least=50, aim=10, below=True, unit=" ms"),
        judge("interactive first token, under load / idle", ratio, least=2.5, aim=1.5, below=True, unit="x"),
    ]


def _sizes(sizes: list[Size] | None) -> list[Verdict]:
    if not sizes or len(sizes) == 1:
        return [
            judge("cost per frame, long job / short job", None, least=1.05, below=True),
            judge("memory flat", None, least=_FLAT, below=True),
        ]
    short, long = sizes[0], sizes[-1]
    ratio = long.seconds_per_frame / short.seconds_per_frame
    cpu = long.cpu_s_per_frame / short.cpu_s_per_frame
    return [
        judge(
            f"cost per frame at {long.frames} / at {short.frames}",
            ratio,
            least=1.05,
            below=True,
            measured=f"{ratio:.3f} (processor time {cpu:.3f})",
        ),
        judge(f"memory flat over {long.frames} frames (last quarter / second)", long.growth, least=_FLAT, below=True),
    ]
