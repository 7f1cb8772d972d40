"""Runs that may be killed: what is written is whole or not there, and a training loop goes on where it was.

A loop that is stopped at any moment and started again ends in the same bits as one that never was. For that, one file
holds together all that the next step depends on: what is trained, the optimiser, the schedule, the random state, the
step. It is replaced in one move. `log.jsonl` may be ahead of it: what it says of later steps is cut off and made again.
An update whose loss or gradient is not finite is not made; too many in a row end the run.
Read next: train_sft.py, whose loop uses it.
"""

import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from engine.distributed import is_first

KEEP_SECONDS = 30  # at least, between two writings of the state: what a kill costs
LINE_SECONDS = 30  # at least, between two lines of a progress bar that is written into a file
MAX_SKIPPED = 10  # updates skipped in a row before the run ends


# ---------------------------------------------------------------- files and folders, whole or not there

def flush(path: Path) -> None:
    """Have the system write a file, or what a folder lists, to the disk now. Where it knows no such thing, as Windows
    and many network shares do for folders, the file is whole all the same, and only a power cut could take it."""
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what it may write
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # a full or broken disk says ENOSPC, EDQUOT or EIO, and is no such case
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


@contextmanager
def writing(partial: Path, name: Path) -> Iterator[None]:
    """Around the writing of `partial`, a file or folder that will be called `name`: where it fails, nothing of it is
    left, which on a full disk would be in the way. OSError for what the system refused, whatever a library made of it:
    torch.save a RuntimeError, tokenizers an Exception, safetensors an error of its own."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        number = system_fault(error)
        if number and not getattr(error, "filename", None):  # else it says itself which file
            raise OSError(number, os.strerror(number), str(name)) from error
        raise


def system_fault(error: BaseException | None) -> int | None:
    """The number of the system's own error, where there is one behind `error`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if told := re.search(r"(?:os error |Errno )(\d+)", str(error)):  # of Rust, of shutil
            return int(told[1])
        error = error.__context__
    return None


def atomic_write(path: Path, data: str | dict) -> None:
    """Write text, or what torch.save takes, to `path`, which is then wholly new or, whatever happens, as it was.
    Text also goes into a device or a pipe, and to /dev/stdout behind what was printed, be it a terminal or a file."""
    if str(path) == "/dev/stdout" and isinstance(data, str):
        print(data, end="")
        return
    if path.exists() and not path.is_file() and isinstance(data, str):
        path.write_text(data)
        return
    path = path.resolve()  # what a link points to is written, the link stays
    partial = path.with_name(path.name + ".partial")
    with writing(partial, path):
        if isinstance(data, str):
            partial.write_text(data)
        else:
            with open(partial, "wb") as file:  # by its name alone torch.save would not tell why it failed
                torch.save(data, file)
        flush(partial)
    os.replace(partial, path)
    flush(path.parent)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write in, which is given the name `folder` when all of it is written. One that had the name before
    is then removed; until then it is untouched."""
    folder = Path(folder)
    # Not NAME.old: so a user may have called a copy of theirs, which would be removed.
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(f".{folder.name}.replaced")
    if old.exists() and not folder.exists():  # killed between the two renamings below
        old.rename(folder)
    for left_over in filter(Path.exists, (partial, old)):
        print(f"{left_over} was left by a run that was killed: removed")
        shutil.rmtree(left_over)
    with writing(partial, folder):
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_log(path: Path | None, last_step: int) -> list[dict]:
    """The rows of a `jsonl` file up to `last_step`. The file is cut there: what comes later is made again."""
    if path is None or not path.exists():
        return []
    lines, rows = path.read_text(errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows += [row] if row["step"] <= last_step else []
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):  # a kill in the middle of a writing leaves half a line, but only at the end
                raise ValueError(f"{path}, line {number} is not JSON of a step ({error}); mend it, or move the file "
                                 f"and {path.parent}/rft.state elsewhere to start stage two anew") from error
    if is_first():
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def append(rows: list[dict], row: dict, path: Path | None) -> None:
    """Add a row to a list and to its `jsonl` file."""
    rows.append(row)
    if path is not None and is_first():
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------- the state of a training loop

class Bar(tqdm):
    """tqdm's progress bar, which redraws one line. Where stderr is a file or a pipe and nothing can be redrawn, a new
    line every LINE_SECONDS instead."""

    def __init__(self, **options):
        self.redraws = sys.stderr.isatty()
        if not self.redraws:
            options |= {"mininterval": LINE_SECONDS, "miniters": 1}  # by the clock alone, not by the count of steps
        super().__init__(file=sys.stderr, dynamic_ncols=self.redraws, **options)

    def set_postfix(self, *args, **kwargs) -> None:
        """The numbers to show, with the next line: tqdm would draw one at once."""
        super().set_postfix(*args, **kwargs, refresh=False)

    @staticmethod
    def status_printer(file):
        return tqdm.status_printer(file) if file.isatty() else lambda line: print(line, file=file, flush=True)


class TrainingState:
    """All that a loop needs to go on, kept in the file `path` (None: nowhere), and its updates.

        state = TrainingState(path, modules, optimizer, schedule, rng)
        for bar in state.steps(steps, "SFT"):
            loss.backward()
            grad_norm = state.update(loss.item())

    modules: their trained parameters and their buffers are kept. rng: the one source of the loop's random numbers.
    `step` counts the steps done, `skipped` the updates not made. Raises ValueError for a file that is no such state.
    """

    def __init__(self, path: Path | None, modules: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, rng: np.random.Generator | torch.Generator):
        self.path, self.optimizer, self.schedule, self.rng = path, optimizer, schedule, rng
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.tensors = {name: p for name, p in modules.named_parameters() if p.requires_grad}
        self.tensors |= dict(modules.named_buffers())
        self.step, self.skipped, self.skipped_in_a_row, self.asked_to_stop = 0, 0, 0, False
        if path is not None and path.exists():
            self._read()

    def steps(self, count: int, name: str) -> Iterator[Bar]:
        """The progress bar, once for each of `count` steps that is left. Between steps the state is kept when it is
        time. Ctrl-C lets the step end, keeps the state and raises KeyboardInterrupt; a second one stops at once."""
        in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python takes no signals
        handler = signal.signal(signal.SIGINT, self._interrupt) if in_main else None
        try:
            with Bar(total=count, initial=self.step, desc=name, disable=not is_first()) as bar:
                kept_at = monotonic()
                while self.step < count:
                    yield bar
                    bar.update()
                    self.step += 1
                    if monotonic() - kept_at >= KEEP_SECONDS or self.asked_to_stop:
                        self._write()
                        kept_at = monotonic()
                    if self.asked_to_stop:
                        again = "to go on" if self.path else "to begin it anew: nothing of it is kept"
                        raise KeyboardInterrupt(f"{name} stopped after step {self.step} of {count}; call the same "
                                                f"command again {again}")
        finally:
            if in_main:
                signal.signal(signal.SIGINT, handler)

    def update(self, loss: float, max_norm: float = float("inf")) -> float:
        """A step of the optimiser on the gradients at hand, clipped at max_norm, unless the loss or a gradient is not
        finite; with it one of the schedule, which thus counts the updates made: one that is not made changes nothing.
        Returns the norm of the gradient before clipping.

        Raises ValueError after MAX_SKIPPED updates in a row that could not be made."""
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, max_norm).item()
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.optimizer.step()
            self.schedule.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row == MAX_SKIPPED:
            kept = self.path is not None and self.path.exists()
            raise ValueError(
                f"step {self.step + 1}: {MAX_SKIPPED} updates in a row could not be made, the loss ({loss:.3g}) or the "
                f"norm of the gradient ({grad_norm:.3g}) is not finite; lower the learning rate, or look at the data "
                "and the rewards" + (f"; the last good state is in {self.path}" if kept else ""))
        return grad_norm

    def _interrupt(self, number, frame) -> None:
        if self.asked_to_stop:
            raise KeyboardInterrupt("stopped at once; the state of an earlier step is kept")
        self.asked_to_stop = True

    def _write(self) -> None:
        if self.path is None or not is_first() or self.skipped_in_a_row:  # the last good state stays
            return
        torch_rng = isinstance(self.rng, torch.Generator)
        atomic_write(self.path, {
            "tensors": self.tensors, "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "counts": [self.step, self.skipped], "random": self.rng.get_state() if torch_rng else
            self.rng.bit_generator.state})

    def _read(self) -> None:
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, tensor in self.tensors.items():
                    tensor.copy_(kept["tensors"][name])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.schedule.load_state_dict(kept["schedule"])
            self.step, self.skipped = kept["counts"]
            if isinstance(self.rng, torch.Generator):
                self.rng.set_state(kept["random"])
            else:
                self.rng.bit_generator.state = kept["random"]
        except Exception as error:  # torch, zipfile and pickle each raise their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{self.path} cannot be gone on from ({reason}); move it elsewhere to start this "
                             "stage anew") from error


def warm_up_and_decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate times a linear warm-up over a tenth of the steps and a cosine down to zero."""
    def factor(step: int) -> float:
        return min((step + 1) / (0.1 * steps + 1), 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def constants(of: dict) -> dict:
    """The numbers that a module gives names in capitals, weights and rates: they decide a run as its settings do. of:
    the module's globals()."""
    return {name: value for name, value in of.items() if name.isupper() and isinstance(value, (int, float, dict))}


def read_note(note: Path) -> dict | None:
    """The settings that a run noted in this file; None where there is none. ValueError where it is no such note."""
    try:
        return dict(json.loads(note.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{note} cannot be read as a run's settings ({error}): mend it, or name another folder with "
                         "--out") from error


def differing(found: dict, settings: dict) -> dict[str, str]:
    """Of each setting that was noted otherwise, by its name: both values. A run that began before constants were noted
    does not tell them."""
    return {name: f"{name} = {found.get(name)}, not {value}" for name, value in settings.items()
            if found.get(name) != value and (name in found or not name.isupper())}


def check_folder(folder: Path, name: str, settings: dict) -> None:
    """Check that what is in `folder` was made with these settings, noted in its file `name`; note them if none are."""
    found = read_note(folder / name)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / name, json.dumps(settings, indent=1))
    elif differ := differing(found, settings):
        raise ValueError(f"{folder} holds a run with {'; '.join(differ.values())}: name another folder with --out")
