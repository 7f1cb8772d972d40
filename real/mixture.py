"""Rows of real data as examples: a checked annotation, its picture cut out, its words, batches from several sources.

formats.py makes `Row`s of files. A `Source` makes a row an `Example`, and only then opens its picture; a `Mixture`
draws batches of one task from several sources. What is wrong with a row is one sentence that names file and row; with
`skip_bad` the row is left out instead, and counted.
Read next: formats.py.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body
import captions
from builtin.questions import draw_question
from data import INSTRUCTIONS, Example, Split, make_example
from real.photos import Box, read_person
from real.prompts import length_check


# How a camera may be held that no file tells of: level, 20 degrees up or down, 10 to a side.
TILTS = torch.stack([body.axis_rotation(axis, torch.tensor(degrees)) for axis, degrees in (
    (0, 0.0), (0, 20.0), (0, -20.0), (2, 10.0), (2, -10.0))])  # (T, 3, 3)


@dataclass
class Row:
    """One annotation. What a file does not tell is empty."""

    where: str  # file and row, for those who must mend it
    rotmats: Tensor | None = None  # (24, 3, 3), as the camera sees it; without an image the heading is removed
    betas: Tensor = torch.zeros(10)  # (10,)
    image: Path | None = None
    box: Box | None = None  # around the person, in the pixels as they are stored; None: the whole image
    frame: tuple[int, int] | None = None  # width and height that the image must have, if known: see photos.read_person
    captions: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()  # prompts, each with its answer
    id: str = ""  # by which others know it, where the file has one; base names of images are not unique
    holds: np.ndarray | None = None  # (T, S) bool, where there are no words but those that the pose itself gives
    upright: Tensor | None = None  # (3, 3), the root against gravity, where there is an image and the file tells it

    def against_gravity(self) -> Tensor:
        """The pose (T, 24, 3, 3) with y up, as words about it mean: in each way that it may be."""
        roots = TILTS @ self.rotmats[0] if self.upright is None else self.upright[None]
        roots = roots if self.image is not None else self.rotmats[:1]
        return torch.cat([roots[:, None], self.rotmats[1:].expand(len(roots), -1, -1, -1)], 1)


class Faults:
    """What was wrong with rows: the first fault stops, or with skip_bad a row at fault is left out and counted once."""

    def __init__(self, skip_bad: bool = False):
        self.skip_bad, self.found = skip_bad, {}  # where: what was wrong there

    @property
    def count(self) -> int:
        return len(self.found)

    @property
    def first(self) -> str:
        return next(iter(self.found.values()), "")

    @contextmanager
    def at(self, where: str | Path) -> Iterator[None]:
        """Put `where` before the sentence of a ValueError raised inside; with skip_bad go on behind the block."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            sentence = str(error) if str(error).startswith(str(where)) else f"{where}: {error}"
            if not self.skip_bad:
                raise ValueError(sentence) from None
            self.found.setdefault(str(where), sentence)


# ---------------------------------------------------------------- where the rows are

def paths_and_weight(text: str, count: int) -> tuple[list[str], float]:
    """What "PATH,PATH=WEIGHT" says: `count` paths, and a weight that is 1 if not given, NaN if it is no number.

    A path may hold commas and "=" too: of all ways to part the text the first is taken in which every path is there. If
    there is none, for whoever then says what is wrong, it is parted at each comma and at the last "="."""
    def number(weight: str) -> float:
        try:
            return float(weight)
        except ValueError:
            return float("nan")

    before, equals, weight = text.rpartition("=")
    ways = [(before, number(weight)), (text, 1.0)] if equals else [(text, 1.0)]
    for places, weight in ways:
        parts = places.split(",")
        for commas in combinations(range(1, len(parts)), count - 1):
            paths = [",".join(parts[i:j]) for i, j in pairwise((0, *commas, len(parts)))]
            if weight > 0 and all(path and os.path.exists(path) for path in paths):
                return paths, weight
    return ways[0][0].split(","), ways[0][1]


# ---------------------------------------------------------------- rows to examples

@dataclass
class Source:
    """Rows of one file or folder, and the tasks they can be examples of."""

    name: str
    rows: list[Row]
    tasks: tuple[str, ...]
    image_size: int
    flips: bool  # show every other example in a mirror: picture, pose and words
    check: Callable[[Example], None] = lambda example: None  # raises ValueError for one that the policy cannot read

    def __post_init__(self):
        speechless = [row for row in self.rows if not row.captions and not row.turns]
        for start in range(0, len(speechless), 1000):  # many at once: one at a time takes longer than a training step
            rows = speechless[start:start + 1000]
            ways = [row.against_gravity() for row in rows]
            ends = np.cumsum([len(poses) for poses in ways])[:-1]
            for row, holds in zip(rows, np.split(captions.pose_holds(torch.cat(ways)).numpy(), ends)):
                row.holds = holds

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int, task: str, rng: np.random.Generator) -> Example:
        """The row as an example of one of `tasks`, with words drawn afresh. A picture at fault is a ValueError, as are
        words too long for the policy, if it is known."""
        self.check(example := self._example(index, task, rng))
        return example

    def _example(self, index: int, task: str, rng: np.random.Generator) -> Example:
        row, flip = self.rows[index], self.flips and rng.random() < .5
        image = None if row.image is None else read_person(row.image, row.box, self.image_size, row.frame)
        rotmats, say = row.rotmats, captions.swap_sides if flip else str
        if flip:
            image = None if image is None else np.ascontiguousarray(image[:, ::-1])
            rotmats = None if rotmats is None else body.mirror(rotmats)
        if row.turns:
            prompt, answer = map(say, row.turns[rng.integers(len(row.turns))])
            return Example(task, prompt, answer, image, rotmats, row.betas, "", ())
        if row.captions:
            caption = say(row.captions[rng.integers(len(row.captions))])
            prompt = str(rng.choice(INSTRUCTIONS[task])).format(caption)
            return Example(task, prompt, captions.POSE_ANSWER, image, rotmats, row.betas, caption,
                           captions.parse(caption))
        holds = row.holds[:, list(captions.MIRRORED_STATEMENT)] if flip else row.holds  # (T, S)
        if task == "vqa":
            return Example(task, *draw_question(holds, rng), image, rotmats, row.betas, "", ())
        holds = holds.all(0, keepdims=True)  # (1, S), what holds whichever way the camera was held
        pictures = None if image is None else image[None]
        return make_example(Split(rotmats[None], holds, rotmats[None], row.betas[None], pictures), task, 0, rng)


@dataclass
class Mixture:
    """Sources to draw from; data.draw_batch and so both trainings take it in place of a `Split`."""

    sources: list[Source]
    weights: list[float]  # of how many examples to come from each source
    faults: Faults  # found when drawn
    unread: int = 0  # how many rows were left out before, when their files were read

    @property
    def left_out(self) -> int:
        """How many rows were left out, when read or when drawn."""
        return self.unread + self.faults.count

    def meet(self, policy) -> None:
        """From now on an example must be one that this model.PosePolicy can read whole, or is a fault of its row."""
        check = length_check(policy)
        for source in self.sources:
            source.check = check

    def base_rates(self) -> Tensor:
        """As of a Split, over the pictures that are described: (S,), each source with its weight; 0 where none is."""
        rates, total = torch.zeros(len(captions.STATEMENTS)).double(), 0.0
        for source, weight in zip(self.sources, self.weights):
            holds = [row.holds.all(0) for row in source.rows if row.holds is not None and row.image is not None]
            if holds and "image2text" in source.tasks:
                rate = torch.from_numpy(np.mean(holds, 0))
                rate = (rate + rate[list(captions.MIRRORED_STATEMENT)]) / 2 if source.flips else rate
                rates, total = rates + weight * rate, total + weight
        return rates / max(total, 1e-9)

    def draw(self, tasks: dict[str, float], batch_size: int, rng: np.random.Generator) -> list[Example]:
        """Examples all of one task. A source has its weight's share of all examples and gives its own tasks with the
        given odds. A row with a bad picture is, with skip_bad, counted and replaced by another."""
        odds = np.array([[odds * (task in source.tasks) for task, odds in tasks.items()] for source in self.sources])
        odds = odds / np.where(odds.sum(1, keepdims=True) > 0, odds.sum(1, keepdims=True), 1)  # (sources, tasks)
        odds = odds * np.array(self.weights)[:, None]
        if not odds.any():
            raise ValueError(f"none of --data has examples of {' or '.join(tasks)}: "
                             + ", ".join(f"{source.name} has {' and '.join(source.tasks)}" for source in self.sources))
        column = rng.choice(len(tasks), p=odds.sum(0) / odds.sum())
        picked = rng.choice(len(self.sources), batch_size, p=odds[:, column] / odds[:, column].sum())
        return [self._one(self.sources[i], list(tasks)[column], rng) for i in picked]

    def _one(self, source: Source, task: str, rng: np.random.Generator) -> Example:
        """A row left out stays among those that are drawn from, and is found bad again: so what is drawn hangs on the
        random state alone, and a run that was stopped and goes on draws the same rows."""
        bad = {}  # index: why
        while len(bad) < len(source):
            index, known = int(rng.integers(len(source))), self.faults.count
            where = source.rows[index].where
            with self.faults.at(where):
                return source.example(index, task, rng)
            bad[index] = self.faults.found[str(where)]
            if not known:
                print(f"left out, as will be whatever else is found bad when drawn: {bad[index]}")
        raise ValueError(f"{source.name}: every row was left out, the first because of {next(iter(bad.values()))}")
