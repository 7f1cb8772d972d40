"""The table of evaluate.py: what each measure is called, where it stands in the numbers, and policies side by side.

A measure of your own is a number in what `evaluate.evaluate` returns and a row here.
Read next: floors.py, which fills the column `blind`.
"""

import json
from pathlib import Path

from lab.metrics import QUESTIONS

ROWS = (  # what it says, where it stands in the result
    ("text to pose: statements held, sampled pose", ("text2pose", "statements_sampled")),
    ("text to pose: statements held, mean pose", ("text2pose", "statements_mean")),
    ("text to pose: statements held, own minus others'", ("text2pose", "own_minus_others")),
    ("text to pose: R@5 under the judge", ("text2pose", "judge_r5")),
    ("text to pose: FID under the judge", ("text2pose", "fid")),
    ("text to pose: diversity, mm", ("text2pose", "diversity_mm")),
    ("image to pose: MPJPE of the mean pose, mm", ("image2pose", "mpjpe_mean")),
    ("image to pose: MPJPE of sampled poses, mm", ("image2pose", "mpjpe_sampled")),
    ("image to pose: PA-MPJPE of the mean pose, mm", ("image2pose", "pa_mpjpe_mean")),
    ("image to pose: PVE of the mean pose, mm", ("image2pose", "pve_mean")),
    ("image to text: statements of the answer that hold", ("description", "statements_held")),
    ("image to text: said beyond a blind guess (truth: 1)", ("description", "informed")),
    ("questions: accuracy", ("vqa_accuracy",)),
    ("answers of the right form", ("format_rate",)))


def read_metrics(run: Path) -> dict:
    """What train_rft.py measured of a finished run. ValueError where its metrics.json holds something else, as after
    evaluate.py --json."""
    try:
        made = json.loads((run / "metrics.json").read_text())
        is_whole = all("text2pose" in made[stage] for stage in ("floors", "sft", "rft"))
    except (ValueError, LookupError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{run}/metrics.json is not what train_rft.py writes there: move it elsewhere, and the "
                         "command that made the run measures anew, without training")
    return made


def table(results: dict[str, dict]) -> str:
    """The metrics of policies side by side, and how they were measured, as text. The last one is a policy; of `blind`
    (lab/floors.py), if it is among them, not every row is filled."""
    lines = [f"{'':52s}" + "".join(f"{name:>10s}" for name in results)]
    for title, keys in ROWS:
        values = [result[keys[0]] if len(keys) == 1 else result[keys[0]].get(keys[1]) for result in results.values()]
        digits = 1 if max(value for value in values if value is not None) > 2 else 3
        lines.append(f"{title:52s}" + "".join(f"{'-':>10s}" if v is None else f"{v:10.{digits}f}" for v in values))
    last, blind = list(results.values())[-1], results.get("blind")
    text = last["text2pose"]
    lines += [f"n = {last['n']} poses never trained on. Errors: SMPL's 24 joints, pelvis aligned. R@5: pool of all n; "
              f"true poses {text['judge_ceiling']['t2p_r5']:.3f}, shuffled {text['judge_floor']['t2p_r5']:.3f}.",
              f"Statements of shuffled true poses: {text['statements_shuffled']:.3f}. {QUESTIONS} questions a picture: "
              f"the commonest answer to each is right in {last['vqa_commonest']:.3f}."]
    if blind:
        lines.append("blind: the best one pose for all sentences, one pose for all pictures, one description. "
                     f"FID of as many true training poses: {blind['fid_true']:.3f}.")
    if blind and "probe" in blind:
        lines.append(f"A linear probe of the frozen image features: MPJPE {blind['probe']['mpjpe_mean']:.1f} mm, "
                     f"PA-MPJPE {blind['probe']['pa_mpjpe_mean']:.1f} mm.")
    return "\n".join(lines)
