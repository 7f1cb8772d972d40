"""A variant of the pose head, `train_rft.py --sigma frozen`: does a sigma that is never taught do as well (claim 9)?

Read next: ../model.py, where sigma is otherwise read from the hidden state."""

import numpy as np
import torch

from data import Split, draw_batch
from model import PosePolicy


@torch.no_grad()
def freeze_sigma(policy: PosePolicy, split: Split, seed: int) -> None:
    """From here on each of the 144 numbers has one sigma, the mean of what the policy gives to some prompts, and no
    correlations. To freeze the layers alone is not enough: sigma then moves with the hidden state it is read from."""
    rng, head = np.random.default_rng([seed, 21]), policy.pose_head
    examples = [e for task in ("text2pose", "image2pose") for e in draw_batch(split, {task: 1.0}, 64, rng)]
    sigma = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose.stddev.mean((0, 1))
    for layer in filter(None, (head.sigma, head.correlation)):
        for parameter in layer.requires_grad_(False).parameters():
            parameter.zero_()
    head.sigma.bias.copy_((sigma - head.sigma_floor).expm1().log())  # what softplus takes back
