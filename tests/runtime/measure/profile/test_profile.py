"""`diffseg profile` on the embedded model: the record, the trace, the report, and how wrong usage ends."""

import io
import json
import re
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest
from diffseg.cli.profile import _write
from diffseg.engines import open_bundle
from diffseg.engines.bundle.manifest import ENCODER, UNET
from diffseg.engines.examples import example_images
from diffseg.engines.providers.network import Network
from diffseg.measure.profile.chrome_trace import trace_events
from diffseg.measure.profile.html import render_report
from diffseg.measure.profile.record import ProfileSettings, parse_profile
from diffseg.measure.profile.recorder import Span
from diffseg.measure.profile.runs import Run, Spans
from diffseg.measure.profile.session import take_profile
from diffseg.measure.profile.table import profile_tables, warnings
from diffseg.segmenter import Segmenter
from msgspec import structs
from rich.console import Console

from tests.commands import diffseg

STAGES = ["decode", "resize", "encode", "attend", "aggregate", "merge", "refine", "suppress", "write", "other", "total"]
ROUNDING = 1e-3  # of a microsecond


def test_the_record_holds_every_stage_of_every_run(profiled):
    record = profiled.record
    assert list(record["seconds"]) == list(record["statistics"]) == STAGES
    samples = np.array([record["seconds"][stage] for stage in STAGES])
    assert samples.shape == (len(STAGES), 2)
    assert (samples[:-2] > 0).all()
    assert (samples[-2] >= 0).all()
    np.testing.assert_allclose(samples[:-1].sum(0), samples[-1])
    for stage, row in record["statistics"].items():
        assert row["min"] == min(record["seconds"][stage])
        assert row["min"] <= row["median"] <= row["p90"] <= row["p95"] <= row["p99"] <= max(record["seconds"][stage])
    assert sum(row["share"] for stage, row in record["statistics"].items() if stage != "total") == pytest.approx(1)
    assert record["images_per_second"] == pytest.approx(2 / sum(record["seconds"]["total"]))
    assert record["runs"] == [[0], [1]]
    assert record["drift"]["judged"] is False


def test_the_record_says_where_and_on_what(profiled):
    environment, bundle = profiled.record["environment"], open_bundle("tiny")
    assert environment["bundle"]["content_hash"] == {g: bundle.content_hash(g) for g in (ENCODER, UNET)}
    assert environment["bundle"]["image_size"] == list(bundle.manifest.image_size)
    assert environment["provider"] == "cpu"  # what auto took
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["cpu"]["logical_cores"] >= 1
    assert [image["name"] for image in profiled.record["images"]] == [p.name for p in example_images()[:2]]


def test_starts_memory_and_concurrency(profiled):
    record = profiled.record
    processes = record["fresh_processes"]
    assert {len(values) for values in processes.values()} == {1}
    steps = sum(processes[name][0] for name in ("interpreter", "import", "load", "segment"))
    assert processes["first_masks"][0] == pytest.approx(steps)
    assert record["load_seconds"] > 0
    assert record["first_run"]["total"] >= record["first_run"]["attend"] > 0
    peaks = [record["peak_resident_bytes"][f"after_{w}"] for w in ("load", "first_run", "runs", "concurrency")]
    assert peaks == sorted(peaks)
    assert peaks[0] > 50e6
    assert [row["threads"] for row in record["concurrency"]] == [1, 2]
    assert [row["images"] for row in record["concurrency"]] == [2, 4]
    assert record["concurrency"][0]["relative"] == 1


def test_operators_are_the_graphs_own(profiled):
    operators = profiled.record["operators"]
    assert operators["images"] == 2
    assert {node["graph"] for node in operators["nodes"]} == {ENCODER, UNET}
    assert {"Conv", "Softmax"} <= {kind["kind"] for kind in operators["kinds"]}
    assert sum(kind["share"] for kind in operators["kinds"]) == pytest.approx(1)
    assert all(node["calls"] == 1 for node in operators["nodes"])
    seconds = [kind["seconds"] for kind in operators["kinds"]]
    assert seconds == sorted(seconds, reverse=True)


def complete(trace, **wanted):
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and all(e[k] == v for k, v in wanted.items())]


def test_the_events_of_a_trace_nest(profiled):
    events = profiled.trace["traceEvents"]
    assert {event["ph"] for event in events} == {"X", "M"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            tracks[event["pid"], event["tid"]].append(event)
    for track in tracks.values():
        assert [e["ts"] for e in track] == sorted(e["ts"] for e in track)
        stack = []
        for event in track:
            end = event["ts"] + event["dur"]
            while stack and stack[-1] <= event["ts"] + ROUNDING:
                stack.pop()
            assert not stack or end <= stack[-1] + ROUNDING, event
            stack.append(end)


def test_operators_lie_inside_the_stage_of_their_graph(profiled):
    for graph, stage in ((ENCODER, "encode"), (UNET, "attend")):
        stages = complete(profiled.trace, cat="stage", name=stage, pid=2)
        operators = [e for e in complete(profiled.trace, cat="operator") if e["args"]["graph"] == graph]
        assert len(stages) == 2
        assert operators
        for operator in operators:
            assert (
                sum(
                    span["ts"] <= operator["ts"] + ROUNDING
                    and operator["ts"] + operator["dur"] <= span["ts"] + span["dur"] + ROUNDING
                    for span in stages
                )
                == 1
            )
        # Not merely somewhere inside: the engine's time is nearly all of the stage's.
        assert sum(e["dur"] for e in operators) > 0.5 * sum(span["dur"] for span in stages)


def test_the_trace_shows_every_pass(profiled):
    names = {e["args"]["name"]: e["pid"] for e in profiled.trace["traceEvents"] if e["ph"] == "M"}
    assert list(names) == ["timed runs", "runs with operators, slower", "1 at once", "2 at once"]
    assert len(complete(profiled.trace, cat="run", pid=1)) == 2
    assert len({e["tid"] for e in complete(profiled.trace, pid=names["1 at once"])}) == 1
    assert len({e["tid"] for e in complete(profiled.trace, pid=names["2 at once"])}) == 2


class Checker(HTMLParser):
    """Balanced tags, and nothing that a browser would load or run."""

    VOID = frozenset({"meta"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "xlink:href", "srcset"}
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file(profiled):
    checker = Checker()
    checker.feed(profiled.html)
    assert checker.open == []
    assert not checker.seen & {"script", "link", "iframe", "img", "object"}
    assert not re.search(r"url\(|@import|https?://", profiled.html)
    assert profiled.html.count("<svg") >= 5  # stages, histogram, order, operators, starts, concurrency
    assert "prefers-color-scheme: dark" in profiled.html
    for stage in STAGES[:-2]:
        assert f'class="{stage}"' in profiled.html
    assert profiled.record["operators"]["nodes"][0]["name"] in profiled.html


def test_the_report_of_a_bare_profile_and_of_odd_names(profiled):
    record = json.loads(json.dumps(profiled.record))
    record |= {"fresh_processes": None, "concurrency": [], "operators": None, "operators_note": "<none> & no"}
    record["environment"]["bundle"]["name"] = "<b>&bold"
    record["images"][0]["name"] = '"><script>'
    record["peak_resident_bytes"] = dict.fromkeys(record["peak_resident_bytes"])
    html = render_report(parse_profile(json.dumps(record), "x"))
    Checker().feed(html)
    assert "<script" not in html
    assert "&lt;b&gt;&amp;bold" in html
    assert "&lt;none&gt; &amp; no" in html
    assert "not reported by this system" in html


def test_the_tables(profiled):
    console = Console(width=200, record=True, file=io.StringIO())
    for item in profile_tables(profiled.profile):
        console.print(item)
    text = console.export_text()
    for words in (
        *STAGES,
        "p99",
        "images/s",
        "fresh process, best of 1",
        "peak resident memory",
        "too few runs",
        "Conv",
    ):
        assert words in text


def test_warnings(profiled):
    record = json.loads(json.dumps(profiled.record))
    record["environment"]["cpu"] |= {"load_average": 0.1, "usable_cores": 4}
    quiet = parse_profile(json.dumps(record), "x")
    assert warnings(quiet) == []
    assert 'class="warning"' not in render_report(quiet)
    record["drift"] = {"change": 0.3, "probability": 1e-4, "judged": True, "drifting": True}
    record["environment"]["cpu"]["load_average"] = 3.5
    loud = parse_profile(json.dumps(record), "x")
    drifting, busy = warnings(loud)
    assert drifting.startswith("the runs drift (+30.0% from first to last, p = 0.0001)")
    assert busy == "the machine was busy before this began: load average 3.5 on 4 cores"
    assert render_report(loud).count('class="warning"') == 2


def test_stages_that_overlap_are_no_idle_time(profiled):
    spans = (Span("decode", 10, 30, 1), Span("attend", 20, 60, 2), Span("write", 25, 40, 3), Span("decode", 70, 80, 1))
    seconds = Run((0,), Span("run", 0, 100, 1), spans).seconds()
    expected = {"decode": 30e-9, "attend": 40e-9, "write": 15e-9, "other": 40e-9, "total": 100e-9}
    assert seconds == pytest.approx(expected)
    run = Run((0,), Span("run", 0, 100, 1), spans)
    image = structs.replace(profiled.profile.images[0], name="x")
    record = structs.replace(profiled.profile, images=[image])
    events = [e for e in trace_events(record, Spans([run], {}, [], []))["traceEvents"] if e["ph"] == "X"]
    assert {e["name"]: e["tid"] for e in events} == {"x": 1, "decode": 1, "attend": 2, "write": 3}


@pytest.mark.parametrize("field", ["runs", "warmup", "batch", "starts"])
def test_settings_out_of_range(field):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        ProfileSettings(**{field: -1})
    with pytest.raises(ValueError, match="concurrency"):
        ProfileSettings(concurrency=(2, 0))


def test_a_network_that_records_no_operators_is_profiled_without_them(segmenter, monkeypatch):
    class Plain(Network):
        provider, device = "plain", "cpu"
        session = staticmethod(segmenter.network.session)

    monkeypatch.setattr(Segmenter, "load", lambda *_, **__: Segmenter(segmenter.bundle, Plain()))
    steps = []
    record, spans = take_profile(
        "tiny", example_images()[:1], ProfileSettings(runs=1, warmup=0, starts=0), progress=steps.append
    )
    assert record.operators_note == "provider plain does not record operators"
    assert record.operators is None
    assert len(spans.runs) == 1
    assert len(trace_events(record, spans)["traceEvents"]) == 1 + 1 + len(STAGES) - 2
    assert steps[0] == "loading"


def test_a_batch_a_run(tmp_path):
    done = diffseg(
        *("profile", "tiny", *example_images()[:3], "--runs", 2, "--warmup", 0, "--starts", 0, "--batch", 2),
        *("--no-operators", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["runs"] == [[0, 1], [2, 0]]
    assert record["images_per_second"] == pytest.approx(4 / sum(record["seconds"]["total"]))
    assert (record["operators"], record["fresh_processes"], record["concurrency"]) == (None, None, [])
    assert list(tmp_path.iterdir()) == []  # masks go to a temporary folder


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name a bundle"),
        (["nope"], 1, "error: no bundle 'nope'"),
        (["tiny", "broken.png"], 1, "error: broken.png"),
        (["tiny", "none.jpg"], 1, "error: none.jpg: no such file"),
        (["tiny", "*.nothing"], 2, "no images in"),
        (["tiny", "--runs", "0"], 2, "--runs"),
        (["tiny", "--concurrency", "1,x"], 2, "is not a list of numbers"),
        (["tiny", "--concurrency", "0"], 2, "concurrency must be numbers of at least 1"),
        (["tiny", "--batch", "99", "--starts", "0"], 2, "batch must be 1 to"),
        (["tiny", "--provider", "cuda"], 1, "error: provider 'cuda' needs an NVIDIA GPU"),
        (["tiny", "--html", "no/where.html"], 2, "is not a folder"),
        (["tiny", "--fail-above", "1.1"], 2, "--compare only"),
    ],
)
def test_how_wrong_usage_ends(arguments, code, message, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = diffseg("profile", *arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["broken.png"]


def test_a_trace_written_to_a_link_reaches_the_file_behind_it(tmp_path):
    """/dev/stdout is such a link, to whatever the shell redirects to."""
    (tmp_path / "redirected").touch()
    (tmp_path / "link").symlink_to("redirected")
    _write(tmp_path / "link", "{}")
    assert (tmp_path / "redirected").read_text() == "{}"
    assert (tmp_path / "link").is_symlink()
