"""A variant of the pose head, `train_rft.py --sigma frozen`: does a sigma that is never taught do as well (claim 9)?

Read next: ../model.py, where sigma is otherwise read from the hidden state."""

import numpy as np
import torch

from data import Split, draw_batch
from model import PosePolicy
from real.mixture import Mixture


@torch.no_grad()
def freeze_sigma(policy: PosePolicy, split: Split | Mixture, seed: int) -> None:
    """From here on each of the 144 numbers has one sigma, the mean of what the policy gives to some prompts, and no
    correlations. To freeze the layers alone is not enough: sigma then moves with the hidden state it is read from.
    ValueError for data of neither task that is answered by a pose alone."""
    rng, head = np.random.default_rng([seed, 21]), policy.pose_head
    tasks = [task for task in ("text2pose", "image2pose")
             if isinstance(split, Split) or any(task in source.tasks for source in split.sources)] or ["text2pose"]
    examples = [e for task in tasks for e in draw_batch(split, {task: 1.0}, 64, rng)]
    sigma = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose.stddev.mean((0, 1))
    for layer in filter(None, (head.sigma, head.correlation)):
        for parameter in layer.requires_grad_(False).parameters():
            parameter.zero_()
    head.sigma.bias.copy_((sigma - head.sigma_floor).expm1().log())  # what softplus takes back
