from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.splits import make_split
from builtin.tiny import build_tiny, corpus
from model import PosePolicy


@pytest.fixture(scope="session")
def world():
    """Eight poses, a policy that nothing was taught and whose every token is <POSE>, and a retrieval model."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(8, rng), rng)
    policy = PosePolicy(*build_tiny(corpus(split, 50, rng), hidden_size=32, layers=1))
    policy.vlm.get_output_embeddings().register_forward_hook(  # every token is <POSE>
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id]), 50.0))
    return SimpleNamespace(split=split, policy=policy, retriever=Retriever(policy.tokenizer.backend_tokenizer).eval()
                           .requires_grad_(False))
