"""What every script does: choose threads, device, precision and seeds, print on whatever terminal there is, and end in
one sentence where the user can mend what failed, not in a traceback."""

import errno
import io
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import transformers


def pick_device(name: str | None = None) -> torch.device:
    """`name`, or the best device there is. ValueError for one that is not there."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        there = torch.zeros(1, device=name or best)
        there.cpu()  # what is computed must be read, too: on "meta" nothing can be
        return there.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        if name in (None, best):  # there is one, but for this torch it is too old or too new
            raise ValueError(f"the torch that is installed does not serve the {best} device here ({reason}); add "
                             "--device cpu, or install a build of torch for it, https://pytorch.org/get-started"
                             ) from error
        raise ValueError(f"--device {name} is not available here ({reason}); try --device {best}") from error


def half_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that has units for it, else float32: for weights that are not trained."""
    has_units = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_units else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: of a GPU torch says so by an error of its own, of the CPU by a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and re.search("(not enough|can't allocate) memory", str(error)) is not None)


def decide_threads() -> None:
    """Hold PyTorch, and Intel's MKL beneath it, to the number of threads they have. Every process calls it first.

    Until torch.set_num_threads is called, MKL chooses anew for each product how many threads it takes and so, on some
    processors, how it rounds; from the first call on, even with the number there was, it takes what it was told. A
    process that called it and one that did not would not end in the same bits."""
    torch.set_num_threads(torch.get_num_threads())


def own_seed(seed: int, *role: int) -> int:
    """The seed (32 bits) that one role has in the run of `seed`, for generators that take a single number, as torch's;
    numpy's take the list [seed, role] itself. A sum of the two would give two runs one stream: 0 + 101 is 1 + 100."""
    return int(np.random.SeedSequence([seed, *role]).generate_state(1)[0])


def versions() -> dict[str, str]:
    """Of what decides how a run rounds and draws."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "numpy": np.__version__}


class Printed:
    """Standard output or error. When its reader is gone (`| head -1`), what is still printed is for nobody, and the
    work goes on: its files are wanted all the same."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._unless_the_reader_is_gone(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._unless_the_reader_is_gone(self.stream.flush)

    def _unless_the_reader_is_gone(self, action: Callable, *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # what Windows calls the same
                raise
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


@contextmanager
def any_terminal() -> Iterator[None]:
    """Inside, neither a sign that the terminal lacks nor a reader that is gone ends the work."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # cp1252, for one, has no tick; and what is typed may be no text
            stream.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w") as nowhere:  # for a process that has no output
        with redirect_stdout(Printed(sys.stdout or nowhere)), redirect_stderr(Printed(sys.stderr or nowhere)):
            try:
                yield
            finally:
                sys.stdout.flush()


@any_terminal()
def run(main: Callable[[], None]) -> None:
    """Run a script: threads are decided, transformers keeps quiet, and what the user can mend ends in one sentence, not
    in a traceback."""
    decide_threads()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except OSError as error:  # a full disk, a folder that may not be written to
        sys.exit(f"{Path(sys.argv[0]).name}: {error}; what was kept before is whole: mend this and call the same "
                 "command again")
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped; the same command, called again, takes what was kept, if anything was"
        print(f"\n{Path(sys.argv[0]).name}: {said}", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            sys.exit(f"{Path(sys.argv[0]).name}: out of memory; in training raise --sft_accumulate and "
                     "--accumulate, or lower --sft_batch, --prompts, --group_size or --poses_per_answer; in predict.py "
                     "lower --samples")
        raise
