"""The benchmark in small: what it prints and writes, that both its ways do the same step, what it says of mistakes."""

import json
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch

from engine.saving import save_policy
from lab import benchmark
from lab import soak
from model import PosePolicy
from builtin.poses import sample_poses
from test_model import CORPUS
from builtin.tiny import build_tiny

SMALL = ["--group_sizes", "8", "16", "--prompt_tokens", "20", "--prompts", "2", "--new_tokens", "3",
         "--poses_per_answer", "2", "--repeats", "1", "--plain_tokens", "400", "--device", "cpu"]


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    benchmark.main()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint as transformers save it, and a policy as PosePolicy does."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    vlm, processor, pose_encoder = build_tiny(CORPUS)
    vlm.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    save_policy(PosePolicy(vlm, processor, pose_encoder), folder / "policy")
    return folder


def test_the_tables_are_printed_and_written(folders, monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--vlm", folders / "checkpoint", "--json", tmp_path / "b.json", *SMALL)
    printed = capsys.readouterr().out
    for text in ("times as fast", "matrix rate", "peak MB", "attention", "P = 20, G = 16: ", "`generate` of 2", "*"):
        assert text in printed
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["P"], row["G"]) for row in rows] == [(20, 8), (20, 16)]
    for row in rows:
        assert row["length"] == 20 + 4 + 4  # words, image, pose features
        for way in ("ours", "plain"):
            parts = [row[way][part] for part in benchmark.PARTS]
            assert min(parts) >= 0 and row["gflop"][way] > 0 and row["peak_mb"][way] > 0
        assert sum(row["ours"][part] for part in benchmark.PARTS) == pytest.approx(row["ours"]["step"])
        assert sum(row["kinds"].values()) == pytest.approx(1) and math.isfinite(row["of_rate"]["step"])
        assert row["gflop"]["plain"] > 2 * row["gflop"]["ours"]  # the work that sharing saves


def test_both_kinds_of_folder_are_read(folders):
    new, saved = (benchmark.load_policy_or_vlm(folders / name).state_dict() for name in ("checkpoint", "policy"))
    assert new.keys() == saved.keys()
    assert torch.equal(new["vlm.lm_head.weight"][:100], saved["vlm.lm_head.weight"][:100])


def test_every_answer_has_all_its_tokens_and_most_a_pose(folders):
    torch.manual_seed(0)
    policy = benchmark.load_policy_or_vlm(folders / "checkpoint").eval()
    benchmark.force_answers(policy)
    examples = benchmark.make_examples(policy, 2, 20)
    for way in (benchmark.SharedPrompt(policy, examples, 16), benchmark.PlainWay(policy, examples, 16)):
        rollout = way.sample(2, 12)
        assert rollout.tokens.shape == (2, 16, 12) and rollout.token_mask.all()
        assert (rollout.tokens == policy.pose_id).float().mean().item() == pytest.approx(.25, abs=.09)  # 4 standard errors
        assert rollout.has_pose.float().mean() > .8 and rollout.pose.shape == (2, 16, 2, 144)
        assert not torch.isin(rollout.tokens, torch.tensor([policy.tokenizer.eos_token_id, policy.image_id])).any()


def test_the_plain_step_takes_the_same_gradient(folders):
    """On one rollout: micro-batches of single answers add up to the step of whole groups."""
    policy = benchmark.load_policy_or_vlm(folders / "policy").eval()
    benchmark.force_answers(policy)
    shared = benchmark.SharedPrompt(policy, benchmark.make_examples(policy, 2, 20), 4)
    plain = benchmark.PlainWay(policy, shared.examples, 4, micro_batch=2)
    rollout = shared.sample(2, 6)
    plain.prepare()
    weights, poses = torch.randn(2, 4), torch.randn(2, 4, 2)
    grads = []
    for way in (shared, plain):
        policy.zero_grad()
        for rows, part, F, Delta in way.batches(rollout, weights, poses):
            (way.log_prob(policy, rows, part).log_prob * F[..., None] * part.token_mask).sum().backward()
        grads.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).norm() <= 1e-4 * grad.norm() + 1e-8, name


def test_a_wrong_folder_is_named(folders, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*no checkpoint"):
        run(monkeypatch, "--vlm", tmp_path / "nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="broken: no image processor"):
        run(monkeypatch, "--vlm", tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(monkeypatch, "--json", tmp_path / "nowhere" / "b.json")
    with pytest.raises(ValueError, match="1 or more"):
        run(monkeypatch, "--repeats", "0")


@pytest.mark.parametrize("flags", [("--soak", "9"), ("--soak", "20", "--against", "trl")])
def test_a_long_run_is_long_and_measured_against_nothing(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    with pytest.raises(ValueError, match=f"--soak {flags[1]}: must be 10 or more, and without --against"):
        benchmark.main()


def test_a_long_run_is_watched(short_answers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(soak, "build_tiny", partial(build_tiny, hidden_size=32, layers=1))
    monkeypatch.setattr(soak, "sample_poses", lambda count, rng: sample_poses(24, rng))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--soak", "20", "--json", str(tmp_path / "soak.json")])
    benchmark.main()
    made = json.loads((tmp_path / "soak.json").read_text())
    assert made["steps"] == 20 and len(made["mb"]) == len(made["seconds"]) == 10 and made["bytes_a_step"] > 100
    assert made["growth"] == pytest.approx(made["mb"][-1] / made["mb"][0] - 1)
    assert "to 20; a step of the last tenth" in capsys.readouterr().out


def test_the_seconds_of_a_step_are_medians_weighed_by_the_odds_of_their_tasks(monkeypatch):
    monkeypatch.setattr(soak, "MIX", {"vqa": .75, "text2pose": .25, "image2text": .5})
    seconds, tasks = np.array([1.0, 2.0, 60.0, 10.0]), np.array(["vqa", "vqa", "vqa", "text2pose"])
    assert soak.task_mean(seconds, tasks) == pytest.approx(.75 * 2 + .25 * 10)  # neither the slow one nor the absent task
