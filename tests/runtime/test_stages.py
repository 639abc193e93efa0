"""Stages: seconds add up, and observers see what every thread does."""

import threading

import pytest
from diffseg.measure.profile.recorder import StageRecorder
from diffseg.stages import observing, stage


def test_seconds_of_a_stage_add_up_also_after_an_error():
    timings = {}
    with stage(timings, "merge"):
        pass
    once = timings["merge"]
    with pytest.raises(KeyError), stage(timings, "merge"):
        raise KeyError
    assert timings["merge"] > once > 0
    assert list(timings) == ["merge"]


def test_an_observer_sees_the_stages_of_every_thread_and_only_while_it_watches():
    recorder = StageRecorder()

    def work():
        with stage(None, "decode"):
            pass

    work()
    with observing(recorder):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
    work()
    spans = recorder.take()
    assert [span.stage for span in spans] == ["decode"] * 4
    assert threading.get_ident() in {span.thread for span in spans}
    assert len({span.thread for span in spans}) > 1
    assert all(span.end >= span.start for span in spans)
    assert recorder.take() == []


def test_two_observers_and_a_stage_that_outlives_one():
    outer, inner = StageRecorder(), StageRecorder()
    attend = stage(None, "attend")
    with observing(outer):
        with observing(inner):
            attend.__enter__()
        attend.__exit__(None, None, None)
    assert [span.stage for span in inner.take()] == ["attend"]  # it was shown the beginning, so it is shown the end
    assert [span.stage for span in outer.take()] == ["attend"]


def test_the_seconds_are_those_of_the_span():
    recorder, timings = StageRecorder(), {}
    with observing(recorder), stage(timings, "encode"):
        pass
    (span,) = recorder.take()
    assert timings["encode"] == pytest.approx(span.seconds, abs=1e-12)


def test_ranges_of_nvtx(monkeypatch):
    nvtx = pytest.importorskip("nvtx")
    calls = []
    monkeypatch.setattr(nvtx, "push_range", lambda name, domain: calls.append(("push", name, domain)))
    monkeypatch.setattr(nvtx, "pop_range", lambda domain: calls.append(("pop", domain)))
    with observing(StageRecorder()), stage(None, "encode"):
        calls.append("inside")
    assert calls == [("push", "encode", "diffseg"), "inside", ("pop", "diffseg")]
