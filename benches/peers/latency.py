"""Measured latency ratio of ONNX files to dense, in the way of blochd's `src/ladder/timing.rs`: candidates run
in turn, round by round, and the lower quartile of each stands for what it takes undisturbed."""

import statistics
import time

import numpy as np
import onnxruntime as ort

ROUNDS_MIN, ROUNDS_MAX = 40, 4000
UNDISTURBED = 0.25


def session(path_or_bytes):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path_or_bytes, options, providers=["CPUExecutionProvider"])


def ratios(paths, feed, seconds, repeats):
    """Ratios of `paths[1:]` to `paths[0]`, batch 1, one thread, and dense's milliseconds: the median of `repeats`
    takes of about `seconds` for each candidate, every take on sessions of its own."""
    takes, dense = [], []
    for _ in range(repeats):
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
        quick = [float(np.quantile(t, UNDISTURBED)) for t in times]
        takes.append([q / quick[0] for q in quick[1:]])
        dense.append(1e3 * quick[0])
    return [statistics.median(column) for column in zip(*takes)], statistics.median(dense)
