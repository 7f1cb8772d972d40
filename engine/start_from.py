"""What a change of settings leaves as it is: in a run's own folder, and in that of a variant which begins from it.

`train_rft.py --start_from runs --out runs_mine` takes from the run in `runs` what the variant's settings do not touch,
and ends in the same bits as if all had been made anew. A run's own folder is gone on with under other settings, too, as
long as nothing in it was made with those that changed.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from engine.checkpoint import atomic_folder, atomic_write, constants, differing, read_note
from engine.distributed import is_first

# The settings that do not reach what a folder of a run holds. All others do, so a new one counts until it stands here.
STAGE_ONE = {"vlm_lr", "sft_steps", "sft_batch", "sft_lr", "sft_accumulate", "BETA_NLL", "POSE_WEIGHT", "JOINT_WEIGHT",
             "MUON_LR"}
POLICY = {"lora_rank", "lora_alpha", "lora_targets", "pose_encoder", "covariance", "encoder_steps", "ENCODERS"}
JUDGING = {"eval_poses", "retriever_steps", "RETRIEVERS"}
UNTOUCHED = {"encoders": JUDGING | STAGE_ONE, "sft": JUDGING, "reward": {"eval_poses"} | STAGE_ONE | POLICY,
             "judge": {"eval_poses"} | STAGE_ONE | POLICY}
PARTS = {"accumulate", "sft_accumulate"}  # change rounding at most: where memory was short, a run goes on with others
LATE, REACH_BACK = "rft_config.json", {"retriever_steps", "RETRIEVERS"}  # of stage two's, what is used before it


def notes_of(world, sft, rft=None, weights: dict[str, float] | None = None) -> dict[str, dict]:
    """What decides a run, by the file in its folder that holds it: of stage one, and of stage two with the `weights` of
    all rewards; and the constants of the files of both, since a student may change these too (ENCODERS and RETRIEVERS
    are imported there for this). world, sft, rft: the three configurations of train_rft.py."""
    code = lambda config: constants(vars(sys.modules[type(config).__module__]))
    notes = {"sft_config.json": asdict(world) | asdict(sft) | code(sft)}
    for name in ("out", "device", "skip_bad"):
        del notes["sft_config.json"][name]
    if rft is not None:
        notes[LATE] = asdict(rft) | {"start_from": None, "reward_weights": weights} | code(rft)
    return notes


def differences(folder: Path, notes: dict[str, dict]) -> tuple[dict[str, str], set[str]]:
    """What is noted in `folder` otherwise than in `notes`, by name, and which of it reaches what is made before stage
    two."""
    changed, early = {}, set()
    for note, settings in notes.items():
        differ = differing(found, settings) if (found := read_note(folder / note)) is not None else {}
        differ = {name: values for name, values in differ.items() if name not in PARTS}
        changed |= differ
        early |= differ.keys() & REACH_BACK if note == LATE else differ.keys()
    return changed, early


def check_run(out: Path, notes: dict[str, dict], write: bool = False) -> None:
    """Check that nothing in `out` was made with other settings than these; then, with `write`, note them there. notes:
    the settings, by the file of a run that holds them. ValueError, which says what was made with other ones."""
    changed, early = differences(out, notes)
    reached = {name: early - untouched for name, untouched in UNTOUCHED.items()}
    reached |= {"rft": set(changed), "metrics": set(changed)}
    made = [path for name, settings in reached.items() if settings
            for path in (out / name, out / f"{name}.state", out / f"{name}.json") if path.exists()]
    if made:
        raise ValueError(f"{out} holds a run with {'; '.join(changed.values())}: name another folder with --out, to "
                         f"which --start_from {out} brings of a run in stage two what this leaves as it is, or delete "
                         f"what was made with it to make that anew: {', '.join(map(str, made))}")
    if write:
        out.mkdir(parents=True, exist_ok=True)
        if changed:  # of a stage two that has kept nothing yet
            for name in ("log.jsonl", "samples.jsonl"):
                (out / name).unlink(missing_ok=True)
        for note, settings in notes.items():
            if changed or not (out / note).exists():
                atomic_write(out / note, json.dumps(settings, indent=1))


def find_same(source: str, out: Path, notes: dict[str, dict]) -> list[str]:
    """Which folders of the run `source` are those that a run with these settings would make in `out`; prints them.
    notes: the settings, by the file of a run that holds them.

    Raises ValueError where `source` holds no run, or one that has not come as far as its retrieval models."""
    missing = [str(path) for path in (Path(source) / name for name in (*notes, *UNTOUCHED)) if not path.exists()]
    if missing:
        raise ValueError(f"--start_from {source}: {missing[0]} is not there; name the folder of a run of train_rft.py "
                         "that has come to stage two")
    if Path(source).resolve() == out.resolve():
        raise ValueError(f"--start_from {source}: name another folder for the variant with --out")
    _, differ = differences(Path(source), notes)
    noted = read_note(Path(source) / "sft_config.json")
    differ |= {name for name in notes["sft_config.json"] if name not in noted and not name.isupper()}
    same = [name for name, untouched in UNTOUCHED.items() if differ <= untouched]
    if is_first():
        anew = ", ".join(name for name in UNTOUCHED if name not in same)
        print(f"--start_from {source}: {', '.join(same) or 'nothing'} can be taken from there" + (
            f"; made anew, because of {', '.join(sorted(differ))}: {anew}" if anew else ""))
    return same


def tell_other_world(config) -> dict:
    """Print in what the world that a policy is measured in differs from that of the run which made it, and return what
    that run noted of its own. config: `model`, the policy's folder, with `poses`, `body` and `seed`."""
    noted = read_note(Path(config.model).parent / "sft_config.json") or {}
    differ = differing(noted, {name: vars(config)[name] for name in ("poses", "body", "seed") if name in noted})
    if differ:
        print(f"{config.model} comes from a run with {'; '.join(differ.values())}: these are other test poses than "
              "those of its metrics.json")
    return noted


def take(source: str, out: Path, names: Sequence[str]) -> None:
    """Copy these folders of the run `source`, but for those that `out` has already."""
    for name in names:
        if not (out / name).exists():
            with atomic_folder(out / name) as partial:
                shutil.copytree(Path(source) / name, partial, dirs_exist_ok=True)
