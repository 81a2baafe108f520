"""Measured latency ratio of ONNX files to dense, in the way of blochd's `src/ladder/timing.rs`: candidates run
in turn, round by round, and the lower quartile of each stands for what it takes undisturbed."""

import contextlib
import os
import statistics
import time

import numpy as np
import onnxruntime as ort

ROUNDS_MIN, ROUNDS_MAX = 40, 4000
UNDISTURBED = 0.25
# A take counts while dense is within this of its best.
DISTURBED = 1.2
TRIES = 3


def session(path_or_bytes):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def undisturbed():
    """At raised priority where that is allowed: whatever takes turns with us interrupts a long run more
    often than a short one. Child processes that are started here have it too."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def take(paths, feed, seconds):
    """Undisturbed seconds of each file, all of them run in turn."""
    sessions = [session(str(p)) for p in paths]
    for s in sessions:
        for _ in range(5):
            s.run(None, feed)
    times = [[] for _ in sessions]
    stop = time.perf_counter() + seconds * len(sessions)
    done = 0
    while done < ROUNDS_MIN or (done < ROUNDS_MAX and time.perf_counter() < stop):
        for step in range(len(sessions)):
            i = (done + step) % len(sessions)
            start = time.perf_counter()
            sessions[i].run(None, feed)
            times[i].append(time.perf_counter() - start)
        done += 1
    return [float(np.quantile(t, UNDISTURBED)) for t in times]


def ratios(paths, feed, seconds, repeats, quiet_ms=None):
    """Ratios of `paths[1:]` to `paths[0]`, batch 1, one thread, and dense's milliseconds: the median of
    `repeats` takes of about `seconds` for each candidate, every take on sessions of its own.

    Neighbours on a busy machine slow a large model more than a small one, so interleaving alone does not save a
    ratio: takes in which dense is far above its best (`quiet_ms`, or the best here) are made again, up to
    `TRIES` times as many; then the quietest count."""
    takes = []
    for _ in range(TRIES * repeats):
        with undisturbed():
            takes.append(take(paths, feed, seconds))
        quiet = min([t[0] for t in takes] + ([quiet_ms / 1e3] if quiet_ms else []))
        if sum(t[0] <= DISTURBED * quiet for t in takes) >= repeats:
            break
    takes = sorted(takes)[:repeats]
    columns = zip(*([other / t[0] for other in t[1:]] for t in takes))
    return [statistics.median(column) for column in columns], 1e3 * statistics.median(
        t[0] for t in takes
    )
