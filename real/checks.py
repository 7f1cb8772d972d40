"""What is checked of a file of the field before anything is made of it: kinds, shapes, numbers, boxes, pictures, JSON.

Each check returns the value in the form that the readers want, or raises a ValueError with one sentence.
Read next: talk.py and formats.py, the readers.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from real.photos import Box


def get(record: object, key: str, kind: type):
    """record[key], where record must be a dict and the value of that kind."""
    if not isinstance(record, dict):
        raise ValueError(f"must be an object with `{key}`, found {type(record).__name__}")
    if key not in record:
        raise ValueError(f"`{key}` is missing")
    if not isinstance(record[key], kind):
        raise ValueError(f"`{key}` must be {kind.__name__}, found {type(record[key]).__name__}")
    return record[key]


def numbers(value: object, name: str, *shape: int | None) -> np.ndarray:
    """The value as float32 of that shape, in which None is any length. It may hold NaN; see `finite`."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must be numbers {shape}".replace("None", "any") + ", found something else")
    if array.ndim != len(shape) or any(want not in (None, found) for want, found in zip(shape, array.shape)):
        raise ValueError(f"`{name}` must have the shape {shape}, found {array.shape}".replace("None", "any"))
    return array.astype(np.float32)


def finite(array: np.ndarray, name: str, most: float = np.inf) -> np.ndarray:
    """The array, which must hold neither NaN nor infinity, nor a number beyond `most`."""
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` holds NaN or infinity")
    if np.abs(array).max(initial=0) > most:
        raise ValueError(f"`{name}` holds {np.abs(array).max():.0f}, which no angle in radians is; are these degrees?")
    return array


def find_image(root: str | Path, name: str) -> Path:
    """The path of an image in root."""
    if not name or not os.path.isfile(Path(root) / name):  # of a name too long Path.is_file raises an OSError
        raise ValueError(f"no image {name[:200]!r} in {root}")
    return Path(root) / name


def square(x: float, y: float, side: float) -> Box:
    """The box of that centre and side, in pixels."""
    if not np.isfinite([x, y, side]).all():
        raise ValueError("the person's box holds NaN or infinity")
    if side < 1:
        raise ValueError(f"the person's box has no area (its side is {side:.3g} pixels)")
    return float(x), float(y), float(side)


def square_around(x: float, y: float, width: float, height: float, margin: float = 0.0) -> Box:
    """The square around a box whose corner is x, y, larger by `margin` pixels."""
    if min(width, height) <= 0:
        raise ValueError(f"the person's box has no area: `bbox` is {width:.3g} wide and {height:.3g} high")
    return square(x + width / 2, y + height / 2, max(width, height) + margin)


def frame_of(x: float, y: float, *names: str) -> tuple[int, int] | None:
    """Width and height of the picture that an annotation of BEDLAM is of: twice the point x, y that its camera looks at
    or, where that is not told (0), those of a close-up, if a name says that it is one. See photos.read_person."""
    if 1 < x < 1e5 and 1 < y < 1e5:
        return round(2 * float(x)), round(2 * float(y))
    return (720, 1280) if any("closeup" in name for name in names) else None


def whole_text(text: str) -> str:
    """The text without spaces around it. JSON can hold half a sign, as "\\ud83d" of an emoji that was cut, of which no
    tokenizer makes tokens."""
    if text != text.encode(errors="replace").decode():
        raise ValueError(f"half a sign is in {text!r}; write the whole sign, or none")
    return text.strip()


def caption_texts(value: object) -> tuple[str, ...]:
    """A caption or a list of them, none empty."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("captions must be text or a list of texts")
    if not value or not all(text.strip() for text in value):
        raise ValueError("there is no caption, or an empty one")
    return tuple(map(whole_text, value))


def read_json(path: str | Path, kind: type):
    """The list or dict in a JSON file, with a byte-order mark or without; for a list also the objects of JSON lines."""
    try:
        text, values, end = Path(path).read_text(encoding="utf-8-sig").strip(), [], 0
        while end < len(text) or not values:
            value, end = json.JSONDecoder().raw_decode(text, end)
            end = re.compile(r"\s*").match(text, end).end()
            values.append(value)
    except OSError:
        raise ValueError(f"{path}: no such file, or it cannot be read") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    in_lines = len(values) > 1 or Path(path).suffix == ".jsonl"
    value = values if kind is list and in_lines and isinstance(values[0], dict) else values[0]
    if value is not values and len(values) > 1:
        raise ValueError(f"{path} is not valid JSON: more follows its first value")
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {kind.__name__}, found {type(value).__name__}")
    return value


def load_tensors(path: str | Path, kind: str, stand_ins: Sequence[tuple[object, str]] = ()):
    """What torch.save wrote to a file, which should be a `kind`: tensors, numbers, text, lists and dicts. Nothing in it
    is run: a name of anything else but of `stand_ins` (what it shall mean, the name) is refused, and told."""
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile, torch and the system each raise their own
        said = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch first tells how to read it unsafely
        name = re.search(r"GLOBAL (\S+)", said)
        reason = (f"it asks for {name[1]}, which no {kind} needs, and was read no further" if name
                  else re.split(r"\. |\n", said.strip())[0])
        reason = reason if " " in reason else f"it is broken, or another kind of file ({type(error).__name__})"
        raise ValueError(f"{path} is no {kind} that can be read safely: {reason}") from None
