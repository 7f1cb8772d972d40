"""The whole chain in small: what it leaves, that a second call reuses it, that AMASS does. That the same seed ends in the
same bits, test_resume.py shows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

import evaluate
import hygrpo
import rewards
import train_rft
import train_sft
from body import axis_rotation, matrix_to_axis_angle, matrix_to_rot6d
from builtin import tiny_encoders
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.tiny import build_tiny
from builtin.splits import make_split
from data import draw_batch, make_example
from builtin.tiny import corpus
from engine.log import numbers, rewards_table
from engine.saving import load_policy
from engine.start_from import check_run, find_same, notes_of, tell_other_world
from lab.frozen_sigma import freeze_sigma
from lab import continued_sft, pictures
from model import PoseHead, PosePolicy
from small_chain import SMALL, leave_out_pictures, run

# Of a run whose end alone is looked at: one step of stage two, so two validations instead of three.
SHORT = [*SMALL, "--rft_steps", "1"]


def write_amass(folder: Path) -> None:
    """Made-up poses in AMASS's layout, two train files, one of val and test."""
    rng = np.random.default_rng(5)
    for name, count in (("train/a", 30), ("train/b", 30), ("val/c", 12), ("test/d", 12)):
        rotmats = sample_poses(count, rng)
        rotmats[:, 0] = axis_rotation(0, torch.tensor(90.0)) @ rotmats[:, 0]
        poses = np.zeros((count, 156), np.float32)
        poses[:, :66] = matrix_to_axis_angle(rotmats)[:, :22].flatten(1).numpy()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", poses=poses, mocap_framerate=12.0)


def test_what_the_chain_leaves(chain):
    out, metrics = chain
    for name in ("sft/model.safetensors", "rft/model.safetensors", "rft/config.json", "rft/tokenizer.json",
                 "reward/config.json", "judge/config.json", "curves.png", "before_after.png"):
        assert (out / name).stat().st_size > 0
    assert not list(out.rglob("*.partial"))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert "val_judge_r5" in rows[0] and "val_judge_r5" in rows[2] and "val_judge_r5" not in rows[1]
    for row in rows[1:]:
        assert {"format", "text_ratio", "text_ratio_std", "text_clip_low", "text_clip_high", "text_kl", "text_entropy",
                "text_flat_groups", "valid", "loss_text", "grad_norm"} <= row.keys()
        assert all(value == value for value in row.values())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {3}
    for sample in samples:
        assert sample["task"] == rows[sample["step"]]["task"] and sample["prompt"] and sample["truth"]
        assert len(sample["answers"]) == (1 if sample["task"] in ("text2pose", "image2pose") else 3)
        assert all(0 <= answer["format"] <= 1 for answer in sample["answers"])
    for name in ("sft", "rft"):
        got = metrics[name]
        assert {"statements_sampled", "statements_mean", "judge_r5", "diversity_mm", "fid"} <= got["text2pose"].keys()
        assert {"mpjpe_mean", "mpjpe_sampled", "pa_mpjpe_mean", "pve_mean"} <= got["image2pose"].keys()
        assert got["n"] == 24 and 0 <= got["format_rate"] <= 1 and 0 <= got["vqa_accuracy"] <= 1
    assert {"seed", "device", "versions"} <= metrics.keys()
    assert metrics["sft"] != metrics["rft"]


def test_a_second_call_only_prints(chain, monkeypatch, capsys):
    out, _ = chain
    before = (out / "rft" / "model.safetensors").stat().st_mtime_ns
    run(monkeypatch, train_rft, "--out", str(out), *SMALL)
    printed = capsys.readouterr().out
    assert "finished before" in printed and "reward format: first, last tenth of its steps" in printed
    assert (out / "rft" / "model.safetensors").stat().st_mtime_ns == before


def test_the_table_ends_with_what_became_of_each_reward_that_was_given():
    rows = [{"step": 0}] + [{"step": i, "joint": float(i)} if i % 2 else {"step": i, "format": 1.0} for i in range(1, 41)]
    lines = rewards_table(rows).splitlines()
    assert [line.split(":")[0] for line in lines] == ["reward format", "reward joint"]  # not those of no step
    assert lines[1].split()[-2:] == ["2.000", "38.000"]  # of 20 steps, the first two and the last two


def test_evaluate_gives_the_metrics_of_the_run(chain, monkeypatch, tmp_path, capsys):
    out, metrics = chain
    run(monkeypatch, evaluate, "--model", str(out / "rft"), "--eval_poses", "24", "--device", "cpu", "--json",
        str(tmp_path / "m.json"))
    got = json.loads((tmp_path / "m.json").read_text())
    assert got.keys() - {"floors"} == metrics["rft"].keys()
    assert got["text2pose"]["judge_r5"] == metrics["rft"]["text2pose"]["judge_r5"]
    assert got["image2pose"]["mpjpe_mean"] == pytest.approx(metrics["rft"]["image2pose"]["mpjpe_mean"], rel=1e-4)
    assert all(got["floors"][task] == metrics["floors"][task] for task in ("text2pose", "description"))  # as many poses
    printed = capsys.readouterr().out
    assert "R@5" in printed and "other test poses" not in printed


def test_that_a_policy_is_measured_in_another_world_than_its_runs_is_told(chain, capsys):
    model = str(chain[0] / "rft")
    tell_other_world(evaluate.EvaluateConfig(model, poses="mocap", seed=1))
    assert "rft comes from a run with poses = None, not mocap; seed = 0, not 1:" in capsys.readouterr().out


def test_a_folder_of_another_run_is_refused(chain, monkeypatch):
    out, _ = chain
    with pytest.raises(ValueError, match="seed = 0, not 1.*--out"):
        run(monkeypatch, train_sft, "--out", str(out), "--seed", "1", *SMALL[:10])


def test_a_run_goes_on_with_a_batch_in_more_parts_after_memory_was_short(tmp_path):
    """Another number of parts changes rounding at most, so that it is no other run."""
    world, sft, rft = train_sft.WorldConfig(), train_sft.SFTConfig(), train_rft.RFTConfig()
    for name in ("sft.state", "rft.state"):
        (tmp_path / name).write_text("{}")
    check_run(tmp_path, notes_of(world, sft, rft, {}), write=True)
    check_run(tmp_path, notes_of(world, replace(sft, sft_accumulate=2), replace(rft, accumulate=4), {}))
    with pytest.raises(ValueError, match="a run with sft_batch"):
        check_run(tmp_path, notes_of(world, replace(sft, sft_batch=16), rft, {}))


def test_changed_weights_are_refused_whether_set_by_a_flag_or_in_the_table(chain, monkeypatch):
    out, _ = chain
    with pytest.raises(ValueError, match="a run with reward_weights = .*--out"):
        run(monkeypatch, train_rft, "--out", str(out), *SMALL, "--reward_weights", "joint=0.125")
    monkeypatch.setitem(rewards.REWARDS, "joint", rewards.REWARDS["joint"]._replace(weight=0.125))
    with pytest.raises(ValueError, match="a run with reward_weights = .*--out"):
        run(monkeypatch, train_rft, "--out", str(out), *SMALL)


@pytest.mark.parametrize("module, name, value", [
    (train_sft, "POSE_WEIGHT", 5.0), (train_sft, "JOINT_WEIGHT", 5.0), (train_sft, "MUON_LR", .01),
    (train_sft, "MIX", {"vqa": 1.0}), (train_sft, "ENCODERS", tiny_encoders.ENCODERS | {"named": 1.0}),
    (train_rft, "MIX", {"vqa": 1.0}), (train_rft, "RETRIEVERS", {"lr": 1e-3, "muon_lr": .02})])
def test_a_weight_or_rate_that_was_changed_in_the_code_is_refused_too(chain, monkeypatch, module, name, value):
    out, _ = chain
    monkeypatch.setattr(module, name, value)
    with pytest.raises(ValueError, match=f"a run with {name} = .*--out"):
        run(monkeypatch, train_rft, "--out", str(out), *SMALL)
    if module is train_sft:
        with pytest.raises(ValueError, match=f"a run with {name} = .*--out"):
            run(monkeypatch, train_sft, "--out", str(out), *SMALL[:10], "--device", "cpu")
        with pytest.raises(ValueError, match=f"was made with {name} = .* set it back"):  # the control has its losses
            run(monkeypatch, continued_sft, "--run", str(out), "--steps", "2", "--device", "cpu")


def test_a_run_that_was_begun_before_constants_were_noted_goes_on(chain, monkeypatch, tmp_path, capsys):
    shutil.copytree(chain[0], tmp_path / "old")
    for note in ("sft_config.json", "rft_config.json"):
        noted = json.loads((chain[0] / note).read_text())
        assert any(name.isupper() for name in noted)
        (tmp_path / "old" / note).write_text(json.dumps({k: v for k, v in noted.items() if not k.isupper()}))
    run(monkeypatch, train_rft, "--out", str(tmp_path / "old"), *SMALL)
    assert "finished before" in capsys.readouterr().out
    notes = {note: json.loads((chain[0] / note).read_text()) for note in ("sft_config.json", "rft_config.json")}
    assert find_same(str(tmp_path / "old"), tmp_path / "new", notes) == ["encoders", "sft", "reward", "judge"]


@pytest.mark.parametrize("change, taken", [
    ({}, "encoders sft reward judge"), ({"eval_poses": 12, "rft_lr": 1.0}, "encoders sft reward judge"),
    ({"sft_lr": .001}, "encoders reward judge"), ({"retriever_steps": 3}, "encoders sft"),
    ({"covariance": "full"}, "reward judge"), ({"seed": 1}, ""), ({"a new setting": None}, ""),
    ({"JOINT_WEIGHT": 1.0}, "encoders reward judge"), ({"ENCODERS": {"lr": 1.0}}, "reward judge"),
    ({"RETRIEVERS": {"lr": 1.0}}, "encoders sft"), ({"MIX": {"vqa": 1.0}}, "")])
def test_what_a_variant_takes_is_what_its_settings_do_not_touch(chain, tmp_path, capsys, change, taken):
    notes = {name: json.loads((chain[0] / name).read_text()) for name in ("sft_config.json", "rft_config.json")}
    for name, value in change.items():
        notes["rft_config.json" if name in ("rft_lr", "retriever_steps", "RETRIEVERS") else "sft_config.json"][name] = value
    assert find_same(str(chain[0]), tmp_path, notes) == taken.split()
    assert f"{', '.join(taken.split()) or 'nothing'} can be taken from there" in capsys.readouterr().out


def test_a_variant_ends_as_if_all_had_been_made_anew(chain, monkeypatch, tmp_path):
    """Also where it is stopped in the middle and goes on."""
    out, metrics = chain
    leave_out_pictures(monkeypatch)
    variant = ("--out", str(tmp_path / "variant"), *SHORT, "--sft_lr", "0.001", "--start_from", str(out))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_rft, "load_or_train_retrievers", mock.Mock(side_effect=KeyboardInterrupt))
        run(patch, train_rft, *variant)
    for name in ("encoders", "reward", "judge"):
        files = [file.relative_to(out) for file in (out / name).rglob("*") if file.is_file()]
        assert files and all((tmp_path / "variant" / file).read_bytes() == (out / file).read_bytes() for file in files)
    run(monkeypatch, train_rft, *variant)
    run(monkeypatch, train_rft, "--out", str(tmp_path / "anew"), *SHORT, "--sft_lr", "0.001")
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("variant", "anew"))
    assert ours == theirs and ours["sft"] != metrics["sft"]


@pytest.fixture
def begun(chain, tmp_path):
    """A run that was stopped before stage two kept anything: its log has but the row before the first step."""
    out = tmp_path / "runs"
    for name in ("encoders", "sft", "reward", "judge"):
        shutil.copytree(chain[0] / name, out / name)
    for name in ("sft_config.json", "rft_config.json"):
        shutil.copy(chain[0] / name, out)
    (out / "log.jsonl").write_text((chain[0] / "log.jsonl").read_text().splitlines(True)[0])
    return out


def notes_with(chain, **changes) -> dict[str, dict]:
    """The notes of the chain's run with some settings changed."""
    notes = {name: json.loads((chain[0] / name).read_text()) for name in ("sft_config.json", "rft_config.json")}
    for settings in notes.values():
        settings |= {name: value for name, value in changes.items() if name in settings}
    return notes


@pytest.mark.parametrize("change", [{"rft_lr": .1}, {"eval_poses": 12}, {"without": "text", "group_size": 5}])
def test_settings_of_stage_two_may_change_until_it_has_kept_something(chain, begun, change):
    notes = notes_with(chain, **change)
    check_run(begun, notes)
    assert (begun / "log.jsonl").exists()  # nothing is written as long as nobody asks for it
    check_run(begun, notes, write=True)
    assert {name: json.loads((begun / name).read_text()) for name in notes} == notes
    assert not (begun / "log.jsonl").exists() and (begun / "sft").exists()  # its row was made with the old settings
    check_run(begun, notes)


@pytest.mark.parametrize("change, made", [
    ({"rft_lr": .1}, ["rft.state"]), ({"sft_lr": .1}, ["sft", "rft.state"]),
    ({"retriever_steps": 9}, ["reward", "judge", "rft.state"]), ({"covariance": "full"}, ["encoders", "sft", "rft.state"]),
    ({"train_poses": 7}, ["encoders", "sft", "reward", "judge", "rft.state"])])
def test_what_was_made_with_other_settings_is_named_and_nothing_else_is_locked(chain, begun, change, made):
    (begun / "rft.state").write_text("")
    notes, (name, value) = notes_with(chain, **change), next(iter(change.items()))
    with pytest.raises(ValueError, match=f"holds a run with {name} = .*, not {value}: name another folder with --out"
                                         ) as fault:
        check_run(begun, notes, write=True)
    assert str(fault.value).endswith("to make that anew: " + ", ".join(str(begun / name) for name in made))
    kept = {path.name for path in begun.iterdir()} - {*made, "log.jsonl"}
    for path in (begun / name for name in made):  # as the sentence says
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    check_run(begun, notes, write=True)
    assert {path.name for path in begun.iterdir()} == kept


def test_a_mended_command_goes_on_with_what_is_there(chain, begun, monkeypatch):
    """Another learning rate, and a slip before it, which has left no trace."""
    leave_out_pictures(monkeypatch)
    before = (begun / "rft_config.json").read_text()
    with pytest.raises(ValueError, match="--without statement: there is no reward"):
        run(monkeypatch, train_rft, "--out", str(begun), *SMALL, "--without", "statement")
    assert (begun / "rft_config.json").read_text() == before
    made = (begun / "sft" / "model.safetensors").stat().st_mtime_ns
    run(monkeypatch, train_rft, "--out", str(begun), *SHORT, "--without", "statements")
    assert (begun / "sft" / "model.safetensors").stat().st_mtime_ns == made and (begun / "metrics.json").exists()
    assert json.loads((begun / "rft_config.json").read_text())["reward_weights"]["statements"] == 0
    assert not (begun / "lock").exists()


def test_one_file_of_motion_capture_is_too_few_and_is_told_before_any_work(monkeypatch, tmp_path):
    write_amass(tmp_path / "mocap")
    (tmp_path / "mocap" / "train" / "b.npz").unlink()
    with pytest.raises(ValueError, match="two retrievers need at least two train files"):
        run(monkeypatch, train_rft, "--poses", str(tmp_path / "mocap"), "--out", str(tmp_path / "runs"), *SMALL)
    assert not (tmp_path / "runs").exists()


def test_a_run_to_start_from_must_be_there_and_have_come_to_stage_two(chain, monkeypatch, tmp_path):
    shutil.copytree(chain[0], tmp_path / "half")
    (tmp_path / "half" / "metrics.json").unlink()
    start_from = lambda out, source: run(monkeypatch, train_rft, "--out", str(tmp_path / out), *SMALL, "--start_from",
                                         str(tmp_path / source))
    with pytest.raises(ValueError, match="--start_from .*half: name another folder for the variant"):
        start_from("half", "half")
    shutil.rmtree(tmp_path / "half" / "judge")
    for source, missing in (("half", "judge"), ("none", "sft_config.json")):
        with pytest.raises(ValueError, match=f"--start_from .*{source}: .*{missing} is not there"):
            start_from("new", source)
    assert not (tmp_path / "new").exists()  # before any work


def test_the_chain_runs_on_motion_capture(monkeypatch, tmp_path):
    write_amass(tmp_path / "mocap")
    for module, name in ((pictures, "before_after"), (train_rft, "curves")):  # drawn by the chain above
        monkeypatch.setattr(module, name, lambda *args, **kwargs: None)
    run(monkeypatch, train_rft, "--poses", str(tmp_path / "mocap"), "--out", str(tmp_path / "runs"), *SHORT)
    metrics = json.loads((tmp_path / "runs" / "metrics.json").read_text())
    assert metrics["rft"]["n"] == 12  # all the test poses there are


def test_sft_learns_and_teaches_only_what_is_not_frozen():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(48, rng), rng)
    policy = PosePolicy(*build_tiny(corpus(split, 50, rng)))
    frozen = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    examples = draw_batch(split, {"text2pose": 1, "image2pose": 1, "vqa": 1}, 24, rng)
    first = train_sft.sft_loss(policy, examples)[0].item()
    train_sft.train_sft(policy, split, train_sft.SFTConfig(sft_steps=30, sft_batch=16), seed=0)
    assert train_sft.sft_loss(policy, examples)[0].item() < .8 * first
    assert frozen and all(torch.equal(p, frozen[n]) for n, p in policy.named_parameters() if n in frozen)


@pytest.mark.parametrize("covariance", ["diag", "lowrank", "full"])
def test_the_sft_loss_weighs_each_number_by_the_variance_it_has_given_those_before_it(covariance):
    """Against conditionals of the joint Gaussian, worked out one number at a time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(3, rng), rng)
    policy = PosePolicy(*build_tiny(corpus(split, 30, rng), hidden_size=32), covariance)
    if covariance != "diag":
        torch.nn.init.normal_(policy.pose_head.correlation.bias, std=.1)
    examples = [make_example(split, "text2pose", i, rng) for i in range(3)]
    with torch.no_grad():
        got = train_sft.sft_loss(policy, examples)[1]["pose"]
        pose = policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose
    total = 0.0
    for mean, e, S in zip(pose.mean[:, 0].double(), examples, (
            pose.variance.diag_embed() if covariance == "diag" else pose.covariance_matrix)[:, 0].double()):
        x = matrix_to_rot6d(e.rotmats).flatten().double() - mean
        for i in range(0, 144):
            gain = torch.linalg.solve(S[:i, :i], S[:i, i]) if i else torch.zeros(0, dtype=torch.float64)
            variance = S[i, i] - gain @ S[:i, i]
            total -= variance * Normal(gain @ x[:i], variance.sqrt()).log_prob(x[i]) / 144 / 3
    assert got == pytest.approx(total.item(), rel=1e-3)


def test_numbers_of_a_step_are_of_what_its_task_has_and_of_poses_that_were_given():
    nan = torch.tensor(torch.nan)
    rollout = SimpleNamespace(has_pose=torch.tensor([[True, False]]))
    pose = Independent(Normal(torch.zeros(1, 2, 144), torch.tensor([[[.5], [9.0]]]).expand(1, 2, 144)), 1)
    tensors = {"format": torch.tensor([[1.0, 0]]), "joint": torch.tensor([[[1.0, 2], [50, 60]]]),
               "semantic": nan.expand(1, 2, 2), "text_kl": torch.tensor(.25), "pose_kl": torch.tensor(3.0)}
    new = SimpleNamespace(pose=pose)
    row = numbers(tensors, new, rollout)
    assert row == {"format": .5, "joint": 1.5, "text_kl": .25, "pose_kl": 3, "sigma": .5}
    rollout.has_pose[:] = False
    tensors |= {"pose_kl": nan, "loss_pose": torch.tensor(0.0)}
    assert numbers(tensors, new, rollout) == {"format": .5, "text_kl": .25}


@pytest.mark.parametrize("covariance", ["diag", "lowrank", "full"])
def test_a_frozen_sigma_is_the_mean_of_what_the_policy_gave_whatever_the_hidden_state(chain, covariance):
    torch.manual_seed(0)
    policy = load_policy(chain[0] / "sft")
    policy.pose_head = head = PoseHead(policy.pose_projector[1].out_features, covariance)
    for layer in filter(None, (head.sigma, head.correlation)):  # a sigma that depends on the hidden state
        torch.nn.init.normal_(layer.weight, std=.02)
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(64, rng), rng)
    examples = [e for task in ("text2pose", "image2pose") for e in draw_batch(split, {task: 1.0}, 64, rng)]
    gaussian = lambda: policy.log_prob(policy.encode(examples), *policy.tokenize_answers(examples)).pose
    before = gaussian()
    freeze_sigma(policy, split, seed=0)
    pose = gaussian()
    torch.testing.assert_close(pose.mean, before.mean)
    torch.testing.assert_close(pose.stddev, pose.stddev[:1].expand_as(pose.stddev))
    torch.testing.assert_close(pose.stddev.mean((0, 1)), before.stddev.mean((0, 1)), atol=.01, rtol=.05)
    if covariance != "diag":
        torch.testing.assert_close(pose.covariance_matrix, torch.diag_embed(pose.variance))


def test_a_run_with_every_option_changed(chain):
    """Two inner epochs, joint ratio, no KL, batch normalisation, frozen sigma: all finite, sigma untouched."""
    out, _ = chain
    policy, retriever = load_policy(out / "sft"), Retriever.from_pretrained(out / "reward")
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(16, rng), rng)
    config = train_rft.RFTConfig(
        rft_steps=3, prompts=3, group_size=2, pose_answers=2, poses_per_answer=1, inner_epochs=2, beta_text=0.0,
        beta_pose=0.0, pose_ratio="joint", normalize="batch", baseline="mean", aggregation="dr_grpo", clip_low=1e-3,
        clip_high=1e-3, sigma="frozen", sigma_floor=.01)
    trunk = policy.pose_head.trunk[1].weight.clone()
    policy.vlm.get_output_embeddings().register_forward_hook(  # every token is <POSE>
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([policy.pose_id]), 50.0))
    rows = train_rft.train_rft(policy, split, retriever, config, 0, lambda policy: {})
    assert all(torch.isfinite(torch.tensor(v)) for row in rows for k, v in row.items() if k != "task")
    assert all("pose_ratio_std" in row and row["valid"] == 1 for row in rows[1:])
    assert any(row["pose_ratio_std"] > 0 for row in rows[1:])  # the second epoch is off the policy that sampled
    assert any(row["pose_clip_low"] + row["pose_clip_high"] > 0 for row in rows[1:])
    assert len({row["sigma"] for row in rows[1:]}) == 1 and policy.pose_head.sigma_floor == .01
    assert not torch.equal(policy.pose_head.trunk[1].weight, trunk)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_statements_and_no_other_reward_have_focal_advantages(chain, monkeypatch, gamma):
    """Of each step: Delta is what plain advantages make of the rewards, each joint's of statements times 1 - mean."""
    out, _ = chain
    seen, plain = [], hygrpo.advantages
    monkeypatch.setattr(hygrpo, "advantages", lambda *given, **how: seen.append((given, plain(*given, **how))) or seen[-1][1])
    rng = np.random.default_rng(0)
    config = train_rft.RFTConfig(rft_steps=8, prompts=4, pose_prompts=4, poses_per_answer=8, focal_gamma=gamma)
    train_rft.train_rft(load_policy(out / "sft"), make_split(sample_poses(16, rng), rng),
                        Retriever.from_pretrained(out / "reward"), config, 0, lambda policy: {})
    of_sentences = [(given, Delta) for given, (_, Delta) in seen if not given[1]["statements"].isnan().all()]
    assert 0 < len(of_sentences) < len(seen) == 8
    for (words, poses, has_pose, weights, parts), Delta in of_sentences:
        alone = lambda name: plain(words, poses, has_pose, {other: weights[other] * (other == name) for other in weights},
                                   parts)[1]
        lacks = 1 - parts["statements"].nanmean((1, 2), keepdim=True).nan_to_num(1.0)  # (B, 1, 1, 24)
        torch.testing.assert_close(Delta, alone("semantic") + alone("statements") * lacks ** gamma)


def test_words_alone_leave_the_pose_head_as_it_was_and_a_reward_left_out_must_exist(chain):
    out, _ = chain
    policy, retriever = load_policy(out / "sft"), Retriever.from_pretrained(out / "reward")
    rng = np.random.default_rng(0)
    split = make_split(sample_poses(16, rng), rng)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    config = train_rft.RFTConfig(rft_steps=4, prompts=3, poses_per_answer=2, pose_weight=0.0, without="format")
    train_rft.train_rft(policy, split, retriever, config, 0, lambda policy: {})
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and not any(name.startswith("pose_head.") for name in changed)
    with pytest.raises(ValueError, match="there is no reward 'beauty' to weigh; the rewards are format"):
        train_rft.train_rft(policy, split, retriever, train_rft.RFTConfig(without="beauty"), 0, None)


@pytest.mark.parametrize("flags, fault", [
    (("--prompts", "2", "--accumulate", "3"), "a batch of 2 cannot be split"),
    (("--sft_batch", "2", "--sft_accumulate", "3"), "a batch of 2 cannot be split"),
    (("--accumulate", "2", "--aggregation", "bnpo"), "look at a whole batch at once"),
    (("--poses_per_answer", "1"), "one pose a prompt has none to be compared with: raise --pose_answers"),
    (("--without", "nothing"), "there is no reward 'nothing'"),
    (("--sigma_floor", "10"), "--sigma_floor 10.0: must be 0 or more and less than 10")])  # no policy could be read
def test_settings_that_cannot_be_followed_are_refused_before_anything_is_made(monkeypatch, tmp_path, flags, fault):
    with pytest.raises(ValueError, match=fault):
        run(monkeypatch, train_rft, "--out", str(tmp_path / "runs"), *flags)
    assert not (tmp_path / "runs").exists()


def test_sft_of_a_finished_run_is_continued_as_its_control(chain, monkeypatch, tmp_path, capsys):
    shutil.copytree(chain[0], tmp_path / "runs")
    run(monkeypatch, continued_sft, "--run", str(tmp_path / "runs"), "--steps", "2", "--device", "cpu")
    made = json.loads((tmp_path / "runs" / "continued.json").read_text())["continued"]
    assert made.keys() == chain[1]["sft"].keys() and made["text2pose"] != chain[1]["sft"]["text2pose"]
    assert "continued" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="holds no finished run; python train_rft.py"):
        run(monkeypatch, continued_sft, "--run", str(tmp_path / "none"))
