"""Metrics against hand-computed cases and independent implementations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
from lab import metrics
from body import axis_angle_to_matrix, forward_kinematics
from real.smpl import load_body
from data import corpus, make_split
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny

JOINTS = forward_kinematics(sample_poses(20, np.random.default_rng(0)))[0].double()


def test_mpjpe_by_hand():
    moved = JOINTS.clone()
    moved[:, 5] += torch.tensor([.03, .04, 0])  # one joint of 24 by 50 mm
    torch.testing.assert_close(metrics.mpjpe(moved + 7, JOINTS), torch.full((20,), 50 / 24, dtype=torch.float64))


def test_pa_mpjpe_undoes_similarities_but_not_mirrors():
    turn = axis_angle_to_matrix(torch.tensor([[.5, -1.2, 2.0]], dtype=torch.float64))
    similar = 1.7 * JOINTS @ turn.mT + torch.tensor([.3, -.2, 5])
    assert metrics.pa_mpjpe(similar, JOINTS).max() < 1e-6
    assert metrics.pa_mpjpe(similar * torch.tensor([-1.0, 1, 1]), JOINTS).mean() > 20


def test_pa_mpjpe_is_taken_at_the_least_squares_fit():
    """No small turn, scale or shift away from the fit brings the points nearer in the squared sense."""
    x, y = (j - j.mean(-2, keepdim=True) for j in (JOINTS.roll(1, 0), JOINTS))
    fit = metrics.similarity_fit(x, y)
    best = (fit - y).square().sum((-1, -2))
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        turn = axis_angle_to_matrix(.05 * torch.randn(20, 3, generator=g, dtype=torch.float64))
        other = (1 + .05 * torch.randn(20, 1, 1, generator=g)) * fit @ turn + .01 * torch.randn(20, 1, 3, generator=g)
        assert ((other - y).square().sum((-1, -2)) >= best).all()


def test_recall_by_hand():
    texts = torch.eye(30)
    poses = texts.roll(1, 0)  # text i is nearest to pose i + 1; its own pose is one of 29 equals
    perfect, wrong = metrics.recall(texts, texts), metrics.recall(texts, poses)
    assert all(value == 1 for value in perfect.values())
    assert wrong["t2p_r1"] == 0 and wrong["p2t_r1"] == 0
    a = torch.tensor([[1.0, 0], [0, 1], [.6, .8]])
    b = torch.tensor([[.8, .6], [1.0, 0], [0, 1]])
    # Cosines of text 0: .8, 1, 0 (own: rank 1); text 1: .6, 0, 1 (own: rank 2); text 2: .96, .6, .8 (own: rank 1).
    assert metrics.recall(a, b)["t2p_r1"] == 0 and metrics.recall(a, b)["t2p_r5"] == 1


def test_frechet_distance_of_known_gaussians():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=g, dtype=torch.float64)
    b = torch.randn(200_000, 3, generator=g, dtype=torch.float64) * 2 + torch.tensor([1.0, 0, 0])
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, b) == pytest.approx(1 + 3, rel=.02)  # |shift|^2 + 3 (2 - 1)^2


def test_commonest_answer():
    examples = [SimpleNamespace(prompt=p, answer=a) for p, a in
                [("q", "x"), ("q", "x"), ("q", "y"), ("r", "z"), ("r", "w")]]
    assert evaluate.commonest_answer_accuracy(examples) == pytest.approx(3 / 5)


def test_who_answers_with_the_truth_has_full_marks(monkeypatch):
    """True words and true poses: each statement holds, each error is zero, each sample is the same."""
    rng = np.random.default_rng(1)
    split = make_split(sample_poses(12, rng), rng)
    judge = Retriever(build_tiny(corpus(split, 20, rng))[1].tokenizer.backend_tokenizer).eval()
    said = []

    def truth(policy, examples, samples, seed=0, greedy=False):
        said.extend(len(e.statements) for e in examples if e.task == "image2text")
        rotmats = torch.stack([e.rotmats for e in examples])
        return {"answers": [e.answer for e in examples], "mean": rotmats,
                "samples": rotmats[:, None].expand(-1, samples, -1, -1, -1)}
    monkeypatch.setattr(evaluate, "respond", truth)
    policy = SimpleNamespace(eval=lambda: None, device=torch.device("cpu"))
    with torch.no_grad():
        got = evaluate.evaluate(policy, split, judge, load_body(), 12)
    told, seen = got["text2pose"], got["image2pose"]
    assert told["statements_sampled"] == told["statements_mean"] == 1 > told["statements_shuffled"]
    assert told["judge"] == told["judge_ceiling"] and told["diversity_mm"] == pytest.approx(0, abs=1e-3)
    assert max(seen[name] for name in ("mpjpe_mean", "mpjpe_sampled", "pa_mpjpe_mean", "pve_mean")) < .1
    assert got["description"] == {"statements_held": 1, "statements_made": np.mean(said)}
    assert got["vqa_accuracy"] == got["format_rate"] == 1 and got["n"] == 12
