"""A small evaluation while stage two runs: points for the curves, and poses for the picture of the way there.

Read next: curves.py and pictures.py, which draw them."""

import evaluate
from body import matrix_to_rot6d
from builtin.retriever import Retriever
from data import Split
from lab.metrics import respond
from lab.pictures import followed_examples
from model import PosePolicy


def validate(policy: PosePolicy, split: Split, judge: Retriever, body, seed: int, count: int = 128) -> dict:
    """A small evaluation for the curves, of `count` validation poses."""
    result = evaluate.evaluate(policy, split, judge, body, count, seed)
    poses = respond(policy, followed_examples(split, seed), 1, seed, greedy=True)["samples"][:, 0]
    text, image = result["text2pose"], result["image2pose"]
    return {"val_" + name: value for name, value in {
        "statements_sampled": text["statements_sampled"], "statements_mean": text["statements_mean"],
        "judge_r5": text["judge_r5"], "diversity_mm": text["diversity_mm"], "mpjpe_mean": image["mpjpe_mean"],
        "mpjpe_sampled": image["mpjpe_sampled"], "vqa_accuracy": result["vqa_accuracy"],
        "format_rate": result["format_rate"],
        "poses": matrix_to_rot6d(poses).flatten(1).cpu().numpy().round(4).tolist()}.items()}  # for a picture of the way
