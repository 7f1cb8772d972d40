"""Words about pictures, without poses: LLaVA-Instruct and its kin, and the captions of BEDLAM-Script.

They keep a model's other skills, and tell it of poses in words. An answer stands with its own question alone.
Read next: formats.py, which lists these readers among those of poses.
"""

import re
from pathlib import Path

import numpy as np

import captions
from real.checks import (caption_texts, find_image, frame_of, get, load_tensors, numbers, read_json, square_around,
                         whole_text)
from real.mixture import Faults, Row
from real.smpl_pickle import restricted_load

DESCRIBE = ("Describe the pose of this person.", "How is this person posed?", "What is this person doing?")
ROLES = {"user": "human", "assistant": "gpt"}  # the names of chat templates, where LLaVA's own are human and gpt


# ---------------------------------------------------------------- LLaVA

def _who(turn: object) -> str:
    who = get(turn, "role" if isinstance(turn, dict) and "role" in turn else "from", str).lower()
    return ROLES.get(who, who)


def turns(record: dict) -> list[tuple[str, str]]:
    """Questions and answers of `conversations` in LLaVA's form. What is said before the first question, a last question
    without an answer and what the system is told are left out."""
    said = [turn for turn in get(record, "conversations", list) if _who(turn) != "system"]
    said = said[1:] if said and _who(said[0]) == "gpt" else said
    said = said[:-1] if said and _who(said[-1]) == "human" else said
    if not said or [_who(turn) for turn in said] != ["human", "gpt"] * (len(said) // 2):
        raise ValueError("`conversations` must be of human and gpt by turns, with an answer to a question")
    words = [get(turn, "content" if "role" in turn else "value", str) for turn in said]
    return list(zip(words[::2], words[1::2]))


def without_marks(pairs: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Questions and answers without the mark of the image's place."""
    pairs = tuple(tuple(whole_text(words.replace("<image>", "")) for words in pair) for pair in pairs)
    if not all(map(all, pairs)):
        raise ValueError("`conversations` has an empty turn")
    return pairs


def _in_words(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    if any(mark in answer for _, answer in pairs for mark in (captions.POSE_TOKEN, "<image>")):
        raise ValueError(f"an answer holds {captions.POSE_TOKEN} or <image>, yet there is no such pose or image")
    return pairs


def read_llava(split: str, faults: Faults, file: str, root: str) -> list[Row]:
    """LLaVA-Instruct (Liu et al. 2023): talk about whole images, or none, to keep a model's other skills. The file, a
    JSON list or JSON lines, is its own split."""
    rows = []
    for i, record in enumerate(read_json(file, list)):
        with faults.at(f"{file}, row {i}"):
            pairs, names = turns(record), record.get("image")
            names = [name for name in (names if isinstance(names, list) else [names]) if name is not None]
            if len(names) > 1:
                raise ValueError(f"it has {len(names)} images, of which an example can show one")
            for mark in ("<image>", "<video>"):
                if not names and any(mark in words for pair in pairs for words in pair):
                    raise ValueError(f"it speaks of an {mark} but has no `image`")
            image = find_image(root, get({"image": names[0]}, "image", str)) if names else None
            rows.append(Row(f"{file}, row {i}", image=image, turns=_in_words(without_marks(pairs))))
    return rows


# ---------------------------------------------------------------- BEDLAM-Script

def _people(folder: Path, split: str, suffix: str, fewer: str | None) -> list[tuple[str, int]]:
    """Image and place in it of each person of whom there are captions, in the captions' order: by image, those whom
    PoseEmbroider chose as seen well; of these, if `fewer` is given, as many that differ most."""
    file = folder / f"imgpaths_bedlam_to_selected_human_index_{split}{suffix}.pkl"
    chosen = restricted_load(file)
    people = [(str(image), i) for image in sorted(chosen.keys() - {"criteria"}, key=str)
              for i in get(chosen, image, list)]
    if fewer is None:
        return people
    samples = sorted(folder.glob(f"farther_sample_{split}_*{suffix}.pt"))
    if not samples:
        raise ValueError(f"no farther_sample_{split}_*{suffix}.pt, which tells of whom there are captions")
    try:
        _, order, _ = load_tensors(samples[-1], "choice of people")
        return [people[i] for i in sorted(order[:int(fewer)])]
    except (LookupError, TypeError) as error:
        raise ValueError(f"{samples[-1]} does not belong to {file}") from error


def _captioned(folder: Path, split: str) -> tuple[Path, list[tuple[str, int, object]], dict]:
    """The file of captions; image, place in it and captions of each person; and what is known of all people by image.
    These are the pickles that PoseEmbroider's process_bedlam writes (its steps 2 to 5)."""
    files = {path: re.fullmatch(r"bedlam_[a-z]+_\d+caps(?:_wshape)?(?:_fs(\d+))?(_[a-z]\w*)?", path.stem)
             for path in sorted(folder.glob(f"bedlam_{split}_*caps*.pkl"))}
    if len(files) != 1 or None in files.values():
        raise ValueError(f"must hold one file bedlam_{split}_3caps*.pkl, found {len(files)}")
    (path, parts), = files.items()
    suffix = parts[2] or ""
    said, people = restricted_load(path), _people(folder, split, suffix, parts[1])
    if said.keys() != set(range(len(people))):
        raise ValueError(f"{path.name} has captions of {len(said)} people, where {len(people)} were chosen")
    return path, [(*who, said[i]) for i, who in enumerate(people)], restricted_load(
        folder / f"bedlam_{split}{suffix}.pkl")


def read_bedlam_script(split: str, faults: Faults, folder: str, root: str) -> list[Row]:
    """BEDLAM-Script (PoseEmbroider, Delmas et al. 2024): captions of people in BEDLAM's images, without poses. folder:
    of PoseEmbroider's pickles; root: of the images, training/ and validation/. Of a test split there are none: it is
    read as val."""
    split, rows = {"train": "training"}.get(split, "validation"), []
    with Faults().at(folder):
        path, people, seen = _captioned(Path(folder), split)
    root = Path(root) / split if (Path(root) / split).is_dir() else root
    for i, (image, place, said) in enumerate(people):
        with faults.at(f"{path}, {i}"):
            there = get(seen, image, list)
            if type(place) is not int or place not in range(len(there)):
                raise ValueError(f"no person {place} in {image}")
            left, top, right, bottom = numbers(get(there[place], "smplx_tight_bbox", np.ndarray), "smplx_tight_bbox", 4)
            margin = .1 * np.hypot(right - left, bottom - top)  # as PoseEmbroider has it
            box = square_around(left, top, right - left, bottom - top, margin)
            frame = frame_of(*numbers(there[place].get("princpt", np.zeros(2)), "princpt", 2), image)
            pairs = _in_words(tuple((prompt, caption) for caption in caption_texts(said) for prompt in DESCRIBE))
            rows.append(Row(f"{path}, {i}", image=find_image(root, image), box=box, frame=frame, turns=pairs))
    return rows
