"""Throughput of threads that share one Segmenter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from diffseg.measure.profile.record import ThreadRate
from diffseg.measure.profile.recorder import Span
from diffseg.measure.profile.runs import Runner

ROUNDS = 2  # numbers of threads go up, then down, so that a drift of the machine favours none of them


def measure_concurrency(
    runner: Runner, threads: tuple[int, ...], runs: int, progress: Callable[[str], None]
) -> tuple[list[ThreadRate], dict[int, list[Span]]]:
    """Measure images per second with each number of threads, and with one.

    Args:
        runner: runs the batches.
        threads: numbers of threads. If empty, nothing is measured.
        runs: minimum number of runs per number of threads, over all rounds.
        progress: called with the next step, as one line of text.

    Returns:
        The rates, fewest threads first, and the spans of the last round by number of threads.
    """
    if not threads:
        return [], {}
    levels = sorted({1, *threads})
    counts = {level: math.ceil(runs / ROUNDS / level) * level for level in levels}  # the same number for each thread
    seconds = dict.fromkeys(levels, 0.0)
    spans: dict[int, list[Span]] = {}
    for level in (*levels, *reversed(levels)):
        progress(f"{level} threads" if level > 1 else "1 thread")
        with ThreadPoolExecutor(level) as pool:
            list(pool.map(runner.process, range(level)))  # the first run of each thread does not count
            runner.recorder.take()
            start = time.perf_counter_ns()
            list(pool.map(runner.process, range(counts[level])))
            seconds[level] += (time.perf_counter_ns() - start) / 1e9
        spans[level] = runner.recorder.take()
    images = {level: ROUNDS * counts[level] * runner.batch for level in levels}
    rates = {level: images[level] / seconds[level] for level in levels}
    table = [
        ThreadRate(level, images[level], seconds[level], rates[level], rates[level] / rates[1]) for level in levels
    ]
    return table, spans
