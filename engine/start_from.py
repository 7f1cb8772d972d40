"""A variant takes its own minutes only: `train_rft.py --start_from runs --out runs_mine` begins from what the run in
`runs` made, where the variant's settings do not touch it. It ends in the same bits as if all had been made anew.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.checkpoint import atomic_folder
from engine.distributed import is_first

# The settings that do not reach what a folder of a run holds. All others do, so a new one counts until it stands here.
STAGE_ONE = {"vlm_lr", "sft_steps", "sft_batch", "sft_lr", "sft_accumulate", "BETA_NLL", "POSE_WEIGHT", "JOINT_WEIGHT",
             "MUON_LR"}
POLICY = {"lora_rank", "lora_alpha", "lora_targets", "pose_encoder", "covariance", "encoder_steps", "ENCODERS"}
JUDGING = {"eval_poses", "retriever_steps", "RETRIEVERS"}
UNTOUCHED = {"encoders": JUDGING | STAGE_ONE, "sft": JUDGING, "reward": {"eval_poses"} | STAGE_ONE | POLICY,
             "judge": {"eval_poses"} | STAGE_ONE | POLICY}


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
    differ = set()
    for note, settings in notes.items():
        try:
            found = dict(json.loads((Path(source) / note).read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"--start_from {source}: {note} cannot be read ({error})") from error
        if note == "rft_config.json":  # of stage two's settings these alone reach what can be taken
            settings = {name: settings[name] for name in ("retriever_steps", "RETRIEVERS") if name in settings}
        settings = {name: value for name, value in settings.items() if name in found or not name.isupper()}
        differ |= {name for name, value in settings.items() if name not in found or found[name] != value}
    same = [name for name, untouched in UNTOUCHED.items() if differ <= untouched]
    if is_first():
        anew = ", ".join(name for name in UNTOUCHED if name not in same)
        print(f"--start_from {source}: {', '.join(same) or 'nothing'} can be taken from there" + (
            f"; made anew, because of {', '.join(sorted(differ))}: {anew}" if anew else ""))
    return same


def take(source: str, out: Path, names: Sequence[str]) -> None:
    """Copy these folders of the run `source`, but for those that `out` has already."""
    for name in names:
        if not (out / name).exists():
            with atomic_folder(out / name) as partial:
                shutil.copytree(Path(source) / name, partial, dirs_exist_ok=True)
