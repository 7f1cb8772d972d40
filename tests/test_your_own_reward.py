"""docs/your_own_reward.md: its ten lines are run; the new reward appears in log, samples, bar and curves by itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rewards
import train_rft
from body import matrix_to_rot6d
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from builtin.splits import make_split
from data import draw_batch
from builtin.tiny import corpus
from engine import checkpoint
from lab import curves
from model import PosePolicy, Rollout

PAGE = Path(__file__).parent.parent / "docs" / "your_own_reward.md"


@pytest.fixture
def feet(monkeypatch):
    """The page's code, run at the end of rewards.py, in a table of its own."""
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    monkeypatch.setattr(curves, "REWARDS", rewards.REWARDS)
    code, = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    exec(code, dict(vars(rewards)))


def test_the_ten_lines_reward_feet_on_the_ground(feet):
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(4, rng), rng, images=False)
    examples = draw_batch(split, {"text2pose": 1.0}, 1, rng)
    poses = torch.eye(3).repeat(1, 1, 2, 24, 1, 1)  # standing straight, and with the left leg stretched forward
    poses[..., 1, 1, :, :] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    rollout = Rollout(None, None, torch.ones(1, 1, dtype=torch.bool), matrix_to_rot6d(poses).flatten(-2), [["yes"]])
    tokenizer = build_tiny(corpus(split, 20, rng))[1].tokenizer.backend_tokenizer
    reward = rewards.score(examples, rollout, Retriever(tokenizer).eval(), split.base_rates())[1]["feet"]
    assert -0.02 < reward[0, 0, 0] <= 0 and reward[0, 0, 1] < -0.5
    assert rewards.weights()["feet"] == 1 and rewards.weights(["feet=2"])["feet"] == 2


def test_a_new_reward_appears_in_log_samples_bar_and_curves(feet, monkeypatch, tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(8, rng), rng)
    policy = PosePolicy(*build_tiny(corpus(split, 50, rng)))
    policy.vlm.get_output_embeddings().register_forward_hook(  # every token is <POSE>
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id]), 50.0))
    shown, drawn = [], []
    monkeypatch.setattr(train_rft, "MIX", {"text2pose": 1.0})
    monkeypatch.setattr(checkpoint.Bar, "set_postfix", lambda bar, numbers: shown.append(numbers))
    retriever = Retriever(policy.tokenizer.backend_tokenizer).eval()
    config = train_rft.RFTConfig(rft_steps=2, prompts=2, group_size=2, poses_per_answer=2)
    rows = train_rft.train_rft(policy, split, retriever, config, 0, lambda policy: {}, tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert all(-2 < row["feet"] <= 0 for row in rows[1:]) and "feet" in shown[-1]
    assert all("feet" in answer for sample in samples for answer in sample["answers"])
    monkeypatch.setattr(curves, "plot_smoothed", lambda axis, points, *_, label=None, **style: drawn.append(label))
    curves.curves(tmp_path / "curves.png", rows)
    assert "feet" in drawn
