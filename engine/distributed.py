"""More than one GPU by torch.distributed alone: `torchrun --nproc_per_node N train_rft.py`.

Every process draws the same batch and takes its own prompts, never a part of a group. Their losses are weighed so that
the gradients add up to those of the whole batch, and each process makes the same update. The first one writes and
evaluates. Without torchrun there is one process, and nothing here does anything.

Why not accelerate (1.15), which peft brings along: its prepare() wraps a model in DistributedDataParallel, which adds
gradients up in the hooks of one forward, where a step here calls `sample` and `log_prob`, several times, and averages
them over processes, where parts weigh as many answers and poses as they have; its loaders split a batch only evenly, or
repeat examples; its save_state writes several files one after the other, none replaced as a whole, and of numpy the
global random state, not a generator's; its half precision is autocast of all that the model computes, where here only
weights that are not trained are halved, so that ratios stay exact.
Read next: engine/checkpoint.py.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn

PATIENCE = timedelta(days=30)  # how long the others wait while the first trains encoders or evaluates
waiting = None  # the processes as a group that waits: asleep, where one of NCCL would keep a GPU busy


def start(device: str | None) -> None:
    """Join the processes that torchrun started. ValueError where `device` has not one for each of them. device: as
    asked for; None is the best there is."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        asked, number = device or "cuda mps", int(os.environ["LOCAL_RANK"])
        on_gpu = "cuda" in asked and torch.cuda.is_available()
        if on_gpu and number >= torch.cuda.device_count():
            raise ValueError("torchrun started more processes than the "
                             f"{torch.cuda.device_count()} GPUs that are here: lower --nproc_per_node")
        if "mps" in asked and torch.backends.mps.is_available():
            raise ValueError("Apple's GPU cannot be shared by processes: run without torchrun, or add --device cpu")
        if on_gpu:
            torch.cuda.set_device(number)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        global waiting
        waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def wait() -> None:
    """Until all processes are here, however long the first takes: what it has written, the others may read.
    ConnectionError where one of them has ended."""
    if processes() > 1:
        with together():
            distributed.barrier(waiting)


@contextmanager
def together() -> Iterator[None]:
    """Around what processes do together. ConnectionError where one of them has ended, or does not answer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of gloo and of nccl
        raise ConnectionError("another process of this run has ended, and its own message says why, or it does not "
                              "answer") from error


def own_parts(count: int, accumulate: int) -> list[np.ndarray]:
    """Which of `count` examples are this process's, in `accumulate` parts that are run one after the other."""
    if count < processes() * accumulate:
        raise ValueError(f"a batch of {count} cannot be split over {processes()} processes and {accumulate} parts "
                         "each: raise --prompts and --pose_prompts, or lower --accumulate (in stage one --sft_batch, "
                         "--sft_accumulate)")
    first = distributed.get_rank() * accumulate if processes() > 1 else 0
    return np.array_split(np.arange(count), processes() * accumulate)[first:first + accumulate]


def total(number: float, device: torch.device) -> float:
    """The sum of a number over all processes."""
    if processes() == 1:
        return number
    tensor = torch.tensor(float(number), device=device)
    with together():
        distributed.all_reduce(tensor)
        return tensor.item()


def add_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes."""
    if processes() == 1:
        return
    # A parameter that no process used keeps no gradient, so that its moments rest, as they do with one process.
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    with together():
        distributed.all_reduce(used, distributed.ReduceOp.MAX)
    used = [p for p, is_used in zip(parameters, used.tolist()) if is_used]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
    with together():
        distributed.all_reduce(flat)
    for p, grad in zip(used, flat.split([p.numel() for p in used])):
        p.grad = grad.view_as(p)
