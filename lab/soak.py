"""A long run of HyGRPO, watched: does memory grow, does a step take longer, how large does the log become?

`python -m lab.benchmark --soak 1000` runs it: 1,000 steps of a small policy, memory and clock read every 100.
"""

import ctypes
import gc
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from builtin.splits import make_split
from builtin.tiny import corpus
from model import PosePolicy
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from train_rft import MIX, RFTConfig, train_rft


def reset_peak_memory(device: torch.device) -> None:
    """Count `peak_memory` from now on. What was freed goes back to the system first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError, AttributeError):  # a system that has no such thing
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """MB: the most since the last reset, of the GPU's tensors or of the process; NaN where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except OSError:
        return float("nan")


def task_mean(seconds: np.ndarray, tasks: np.ndarray) -> float:
    """Seconds of a step, from those of steps (N,) and the task of each: the median of each task, weighed by the task's
    odds, so that neither which tasks chance drew nor another program decides it."""
    median = {task: np.median(seconds[tasks == task]) for task in set(tasks)}
    return float(sum(MIX[task] * median[task] for task in median) / sum(MIX[task] for task in median))


def soak(steps: int, device: torch.device) -> dict:
    """Run `steps` steps; print and return memory and seconds a step over each tenth, and the bytes logged a step.

    The first tenth is when caches fill: growth is counted from its end."""
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
            reset_peak_memory(device)
            memory.append(peak_memory(device))  # just reset: what is held now
        return {}
    config = RFTConfig(rft_steps=steps, prompts=8, pose_prompts=8, group_size=2, pose_answers=2, poses_per_answer=8,
                       eval_every=1)
    with tempfile.TemporaryDirectory() as folder:
        rows = train_rft(policy, split, retriever, config, 0, watch, Path(folder))[1:]
        logged = sum((Path(folder) / f"{name}.jsonl").stat().st_size for name in ("log", "samples")) / steps
    taken, tasks = np.diff(clock), np.array([row["task"] for row in rows])  # (steps,)
    tenths = [slice(i, i + tenth) for i in range(0, tenth * len(memory), tenth)]
    seconds = [task_mean(taken[part], tasks[part]) for part in tenths]
    for i, (step_seconds, mb) in enumerate(zip(seconds, memory), 1):
        print(f"to step {i * tenth}: {1000 * step_seconds:.1f} ms a step, {mb:.0f} MB")
    growth, slower = memory[-1] / memory[0] - 1, seconds[-1] / seconds[0] - 1
    print(f"memory {growth:+.1%} from step {tenth} to {steps}; a step of the last tenth {slower:+.1%} to "
          f"one of the first; {logged:.0f} bytes logged a step")
    return {"steps": steps, "mb": memory, "seconds": seconds, "growth": growth, "slower": slower,
            "bytes_a_step": logged}
