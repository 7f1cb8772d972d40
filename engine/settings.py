"""Settings of a command: what each may be stands in its type, and all are checked before the first second of work.

    steps: Count = field(default=450, metadata={"help": "steps of HyGRPO"})
    config, = read_settings(__doc__, MyConfig)      # ends with "--steps 0: must be 1 or more" where that was given
transformers' HfArgumentParser makes a flag of each field. It passes over what `Annotated` adds to a type, and
`check_settings` reads it: also of a configuration that was made in code, without a command line.
Read next: runtime.py, which makes one sentence of a fault.
"""

import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

from transformers import HfArgumentParser


# ---------------------------------------------------------------- what is allowed: of a value to what is wrong with it

def at_least(low: float, below: float = math.inf) -> Callable[[float], str]:
    """low <= value < below. NaN is neither."""
    allowed = f"{low} or more" + ("" if below == math.inf else f" and less than {below}")
    return lambda value: "" if low <= value < below else f"must be {allowed}"


def not_negative(value: float) -> str:
    return "" if value >= 0 else "must be 0 or more"


def not_huge(value: float) -> str:
    return "" if value < 2 ** 31 else "must be less than 2147483648"


def output_file(value: str) -> str:
    """A file can be written there, as far as that can be told without doing so. FileNotFoundError without a folder."""
    path = Path(value)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it, or name another file")
    if path.is_dir():
        return "is a folder; name a file in it"
    if path.is_symlink() and not path.resolve().parent.is_dir():
        return f"is a link into {path.resolve().parent}, which is not there; name another file"
    is_device = path.exists() and not path.is_file()  # else it is written beside, and then replaced
    if not os.access(path if is_device else path.resolve().parent, os.W_OK):
        return "cannot be written to; name another file"
    return ""


def output_picture(value: str) -> str:
    """An output file whose ending is one that Matplotlib knows; without an ending it adds its own."""
    from matplotlib.figure import Figure  # slow, and only where something is drawn
    endings = Figure().canvas.get_supported_filetypes().keys() - {"pgf"}  # which needs LaTeX
    ending = Path(value).suffix.removeprefix(".").lower()
    return output_file(value) or ("" if not ending or ending in endings else
                                  f"must end in one of .{', .'.join(sorted(endings))}")


def output_folder(value: str) -> str:
    """A folder that is there and may be written to, or can be made."""
    path = Path(value)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        return f"cannot be written to, since {there} is a file; name a folder"
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written to; name another folder"


def free_port(value: int) -> str:
    """A page can be served there, to this computer."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given back is free
        try:
            probe.bind(("127.0.0.1", value))
        except OSError as error:
            return f"cannot be used ({error.strerror}); name another"
    return ""


Count = Annotated[int, at_least(1), not_huge]
CountOrNone = Annotated[int, at_least(0), not_huge]  # 0: none of it
SeedNumber = Annotated[int, at_least(0, 2 ** 62)]
Port = Annotated[int, at_least(1, 2 ** 16), free_port]
Number = Annotated[float, at_least(0)]  # finite
Limit = Annotated[float, not_negative]  # infinity: no limit
Floor = Annotated[float, at_least(0, 10)]  # of a standard deviation, as model.PoseHead takes one
OutputFile, OutputPicture = Annotated[str, output_file], Annotated[str, output_picture]
OutputFolder = Annotated[str, output_folder]


# ---------------------------------------------------------------- reading and checking

class Parser(HfArgumentParser):
    """HfArgumentParser that checks what it read, and whose faults are one sentence without the usage of a hundred flags
    before it."""

    def parse_args_into_dataclasses(self, *args, **options) -> tuple:
        configs = super().parse_args_into_dataclasses(*args, **options)
        check_settings(*filter(is_dataclass, configs))  # beside them may be a namespace, and strings
        return configs

    def error(self, message: str) -> None:
        message = re.sub(r"^argument (--\w+)[^:]*", r"\1", message)  # without its spelling with hyphens
        self.exit(2, f"{self.prog}: {message}; --help lists what is allowed\n")


def read_settings(about: str, *kinds: type) -> list:
    """The command line as one checked configuration of each of these dataclasses. about: the script's docstring."""
    *configs, unknown = Parser(kinds, description=about.splitlines()[0]).parse_args_into_dataclasses(
        return_remaining_strings=True)
    if unknown:
        raise ValueError(f"there is no setting {' '.join(unknown)}; --help lists all that there are")
    return configs


def check_settings(*configs) -> None:
    """ValueError, with flag, value and what is allowed, for the first setting of these dataclasses that cannot be, or
    FileNotFoundError for a file to be written in a folder that is not there."""
    for config in configs:
        for name, kind in get_type_hints(type(config), include_extras=True).items():
            value = getattr(config, name)
            for one in value if isinstance(value, list) else [value]:
                for rule in rules(kind) if one is not None else ():
                    try:
                        fault = rule(one)
                    except FileNotFoundError as error:
                        raise FileNotFoundError(f"--{name} {one}: {error}") from None
                    if fault:
                        raise ValueError(f"--{name} {one}: {fault}")


def rules(kind) -> Iterator[Callable]:
    """What `Annotated` adds to a type, or to a part of it, as in `list[Count] | None`."""
    yield from getattr(kind, "__metadata__", ())
    for part in get_args(kind):
        yield from rules(part)
