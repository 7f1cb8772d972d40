"""Floors: what each measure of evaluate.py gives to whoever does not look, and to a line through the frozen features.

A column of its own in the table, `blind`: the best one pose for all sentences, one pose for all pictures, the best one
statement, the commonest answer to each question. Poses and statement are chosen on training poses; what denies, as "The
person is not upside down.", would hold in .99, and no description of the built-in world does so. Beside them a linear
probe (ridge regression from the frozen features that the policy reads to the 6D pose: what needs no language
model) and the Frechet distance of as many true poses (what is due to their number alone).
Read next: ../evaluate.py, whose numbers stand beside these.
"""

import numpy as np
import torch
from torch import Tensor

from body import matrix_to_rot6d, rot6d_to_matrix
from builtin.retriever import Retriever
from data import Split
from lab.metrics import (QUESTIONS, commonest_answer_accuracy, errors_24, eval_examples, frechet_distance, hits,
                         statements_held)
from model import PosePolicy

CAPTIONS = 2000  # of training poses, on which the best single pose is chosen
RIDGE = 0.03  # the probe's penalty, in units of the mean eigenvalue of the features' scatter


def ridge(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """The linear fit of y (N, D) on x (N, F), least squares with a penalty, at asked (M, F): (M, D)."""
    x, y, asked, device = x.cpu(), y.cpu(), asked.cpu(), x.device  # float64 is for the CPU: Apple's GPUs know none
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = (x - x_mean).double(), (y - y_mean).double()
    scatter = x.T @ x  # (F, F)
    scatter.diagonal().add_(RIDGE * scatter.diagonal().mean().clamp_min(1e-12))  # of one row the fit is that row
    weight = torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(scatter))  # (F, D)
    return (y_mean + (asked - x_mean).double() @ weight).float().to(device)


def best_single_pose(train: Split, seed: int) -> Tensor:
    """The training pose (24, 3, 3) in which most of what training captions say holds, each caption counting as one."""
    said = np.zeros(train.holds.shape[1])  # (S,)
    for e in eval_examples(train, "text2pose", CAPTIONS, seed):
        said[list(e.statements)] += 1 / max(1, len(e.statements))
    return train.rotmats[(train.holds @ said).argmax()]


def image_features(policy: PosePolicy, images: np.ndarray) -> Tensor:
    """What the policy reads of each picture, (N, F): its image and its pose tokens, or their means if they are many."""
    flat = lambda x: x.flatten().float() if x.numel() <= 4096 else x.mean(0).float()
    at_once = policy.images_at_once  # a call holds all that it gives
    return torch.stack([torch.cat([flat(p.vlm), flat(p.pose)]) for i in range(0, len(images), at_once)
                        for p in policy.image_features(images[i:i + at_once])])


@torch.no_grad()
def floors(policy: PosePolicy, train: Split, split: Split, judge: Retriever, body, count: int = 500,
           seed: int = 0) -> dict:
    """Numbers named and measured as those of `evaluate.evaluate` on `split`, and `probe`, `fid_true`. There is no probe
    without pictures in `train`, nor where to encode them all takes too long (images_at_once of 1)."""
    rotmats, n = split.rotmats[:count].to(policy.device), len(split.rotmats[:count])
    examples = eval_examples(split, "text2pose", count, seed)
    pose = best_single_pose(train, seed).to(rotmats).expand(n, 1, -1, -1, -1)
    held = float(statements_held(examples, pose)[0].mean())
    texts, judged, truth = (judge.encode_text([e.caption for e in examples]), judge.encode_pose(pose[:, 0]),
                            judge.encode_pose(rotmats))  # (n, dim) each
    words = split.holds[:count, train.base_rates().argmax()]  # of the statement that mostly holds

    camera_rotmats, betas = split.image_rotmats[:count].to(policy.device), split.betas[:count].to(policy.device)
    def errors(rot6d: Tensor) -> dict[str, float]:  # (n, 144)
        guess = rot6d_to_matrix(rot6d.unflatten(-1, (24, 6)))
        found = errors_24({"mean": guess, "samples": guess[:, None]}, camera_rotmats, betas,
                          body)
        return {name: values.mean().item() for name, values in found.items()}
    true = matrix_to_rot6d(train.image_rotmats).flatten(1).to(policy.device)  # (N, 144)
    result = {
        "text2pose": {"statements_sampled": held, "statements_mean": held, "own_minus_others": 0.0,
                      "judge_r5": hits(texts @ judged.T)["t2p_r5"].mean().item()},
        "image2pose": errors(true.mean(0).expand(n, -1)),
        "description": {"statements_held": float(words.mean()), "informed": 0.0},
        "vqa_accuracy": commonest_answer_accuracy(eval_examples(split, "vqa", count, seed, QUESTIONS)),
        "format_rate": None,
        "fid_true": frechet_distance(judge.encode_pose(train.rotmats[:n].to(rotmats)), truth)}
    if train.images is not None and policy.images_at_once > 1:
        x, asked = (image_features(policy, images) for images in (train.images, split.images[:count]))
        result["probe"] = errors(ridge(x, true, asked))
    return result
