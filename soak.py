"""A long run of HyGRPO, watched: does memory grow, does a step take longer, how large does the log become?

`python benchmark.py --soak` runs it: 1,000 steps of a small policy, memory and clock read every 100.
"""

import ctypes
import gc
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data import corpus, make_split
from model import PosePolicy
from poses import sample_poses
from rewards import Retriever
from tiny import build_tiny
from train_rft import MIX, RFTConfig, train_rft


def resident_mb() -> float:
    """Memory of this process now, MB, as Linux tells it, without what was freed and only waits to be used again: that
    is as much as the largest step so far needed, which chance decides."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(steps: int, device: torch.device) -> dict:
    """Run `steps` steps; print and return memory and seconds a step over each tenth, and the bytes logged a step.

    The first tenth is when caches fill: growth is counted from its end. Seconds are the median of each task's steps,
    weighed by the task's odds, so that neither chance nor another program decides them."""
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(200, rng), rng)
    torch.manual_seed(0)
    policy = PosePolicy(*build_tiny(corpus(split, 200, rng))).to(device)
    policy.image_features(list(split.images))
    retriever = Retriever(policy.tokenizer.backend_tokenizer).to(device).eval().requires_grad_(False)
    tenth, clock, memory = max(1, steps // 10), [], []

    def watch(policy: PosePolicy) -> dict:
        clock.append(time.perf_counter())
        done = len(clock) - 1  # the first call is before the first step
        if done and done % tenth == 0:
            gc.collect()
            memory.append(resident_mb())
        return {}
    config = RFTConfig(rft_steps=steps, prompts=8, group_size=2, poses_per_answer=8, eval_every=1)
    with tempfile.TemporaryDirectory() as folder:
        rows = train_rft(policy, split, retriever, config, 0, watch, Path(folder))[1:]
        logged = sum((Path(folder) / f"{name}.jsonl").stat().st_size for name in ("log", "samples")) / steps
    taken, tasks, seconds = np.diff(clock), np.array([row["task"] for row in rows]), []
    for start in range(0, tenth * len(memory), tenth):
        part = slice(start, start + tenth)
        of = {task: np.median(taken[part][tasks[part] == task]) for task in set(tasks[part])}
        seconds.append(float(sum(MIX[task] * of[task] for task in of) / sum(MIX[task] for task in of)))
    for i, (step_seconds, mb) in enumerate(zip(seconds, memory), 1):
        print(f"to step {i * tenth}: {1000 * step_seconds:.1f} ms a step, {mb:.0f} MB")
    growth, slower = memory[-1] / memory[0] - 1, seconds[-1] / seconds[0] - 1
    print(f"memory {growth:+.1%} from step {tenth} to {steps}; a step of the last tenth {slower:+.1%} to "
          f"one of the first; {logged:.0f} bytes logged a step")
    return {"steps": steps, "mb": memory, "seconds": seconds, "growth": growth, "slower": slower,
            "bytes_a_step": logged}
