"""Poses as words: codes, the form of answers, a few poses learned by heart, and GRPO on the words alone."""

import numpy as np
import pytest
import torch

import hygrpo
import rewards
import train_rft
import train_sft
from body import forward_kinematics, matrix_to_rot6d, rot6d_to_matrix
from builtin.poses import sample_poses
from builtin.tiny import build_tiny, corpus
from data import TASKS, make_example
from lab import discrete
from lab.claims import ARMS
from lab.metrics import eval_examples, respond, statements_held
from model import PosePolicy
from real.answers import read_answer
from real.smpl import load_body
from train_rft import RFTConfig
from train_sft import SFTConfig


@pytest.fixture(scope="module")
def poses():
    return sample_poses(400, np.random.default_rng(0))


@pytest.fixture(scope="module")
def policy(world):
    """A discrete policy of the world's eight poses that nothing was taught."""
    torch.manual_seed(0)
    words = corpus(world.split, 50, np.random.default_rng(0))
    return discrete.DiscretePolicy(PosePolicy(*build_tiny(words, hidden_size=64, layers=1)), world.split, 0)


def coded(codebook, rotmats):
    return rot6d_to_matrix(discrete.decode(codebook, discrete.encode(codebook, rotmats)))


def answer_of(policy, tokens) -> str:
    """What `sample` would give as the text of an answer of these tokens, the last of which ends it."""
    return policy.spelled.sub("<POSE>", read_answer(policy, tokens[:-1]))


# ---------------------------------------------------------------- codes

def test_the_code_of_a_code_word_is_that_word(poses):
    codebook = discrete.make_codebook(poses, 16, 0)
    assert codebook.shape == (discrete.N, 16, 24, 6)
    assert {joint for joints in discrete.GROUPS for joint in joints} == set(range(24))
    for joints, centres in zip(discrete.GROUPS, codebook):
        assert (centres[:, [joint for joint in range(24) if joint not in joints]] == 0).all()
        assert torch.equal(discrete.nearest(centres, centres, joints), torch.arange(16))
    codes = torch.randint(16, (100, discrete.N), generator=torch.Generator().manual_seed(0))
    again = discrete.encode(codebook, rot6d_to_matrix(discrete.decode(codebook, codes)))
    assert torch.equal(again[:, 2:], codes[:, 2:])  # the root's two words may share what it is otherwise


def test_more_codes_err_less_and_the_second_word_of_the_root_less_than_the_first(poses):
    fitted, others = poses[:300], poses[300:]
    codebooks = [discrete.make_codebook(fitted, codes, 0) for codes in (2, 8, 32)]
    for x in (fitted, others):
        errors = [(forward_kinematics(coded(codebook, x))[0] - forward_kinematics(x)[0]).norm(dim=-1).mean().item()
                  for codebook in codebooks]
        assert errors[0] > 1.2 * errors[1] > 1.44 * errors[2]
    codes, true = discrete.encode(codebooks[1], others), matrix_to_rot6d(others)[:, 0]
    first = codebooks[1][0, codes[:, 0], 0]
    both = first + codebooks[1][1, codes[:, 1], 0]
    assert (both - true).norm(dim=-1).mean() < 0.8 * (first - true).norm(dim=-1).mean()


def test_a_seed_gives_one_codebook_and_few_poses_few_codes(poses):
    one, again, other = (discrete.make_codebook(poses[:40], 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert discrete.make_codebook(poses[:5], 8, 0).shape[1] == 5


def test_what_coding_costs_is_nothing_where_each_pose_has_a_word_of_its_own(world, poses):
    split, body = world.split, load_body()
    exact = discrete.make_codebook(torch.cat([split.rotmats, split.image_rotmats]), 16, 0)
    found = discrete.quantisation(exact, split, body, 8, 0)
    assert found["MPJPE, mm"] < 0.1 and found["statements"] > 0.99
    coarse = discrete.quantisation(discrete.make_codebook(poses, 4, 0), split, body, 8, 0)
    assert coarse["MPJPE, mm"] > 50 and coarse["statements"] < 0.9
    said = discrete.sentence([found, coarse])
    mean = (found["statements"] + coarse["statements"]) / 2
    assert f"True poses as {discrete.N} code words" in said and f"statements {mean:.3f} ±" in said


# ---------------------------------------------------------------- answers

@pytest.mark.parametrize("task", TASKS)
def test_a_true_answer_reads_as_the_gaussians_and_its_words_spell_its_pose(world, policy, task):
    example = make_example(world.split, task, 3, np.random.default_rng(0))
    tokens, mask = policy.tokenize_answers([example])
    answer, (pose, found) = answer_of(policy, tokens[0, 0]), policy.read_poses(tokens)
    assert mask.all() and answer == example.answer and rewards.has_form(task, answer)
    assert found.item() == (task != "vqa") and pose.shape == (1, 1, 144)
    expected = coded(policy.codebook, example.rotmats[None])[0] if found else torch.zeros(24, 3, 3)
    assert torch.allclose(rot6d_to_matrix(pose[0, 0].unflatten(-1, (24, 6))), expected)


@pytest.mark.parametrize("fault", ["missing", "swapped", "cut off"])
def test_a_missing_or_misplaced_word_is_no_pose_and_nothing_holds_of_it(world, policy, fault):
    example = make_example(world.split, "text2pose", 3, np.random.default_rng(0))
    tokens = policy.tokenize_answers([example])[0]
    place = int((tokens >= policy.first).float().argmax())
    order = {"missing": [*range(place), *range(place + 1, tokens.shape[-1])], "cut off": range(place + 5),
             "swapped": [*range(place), place + 1, place, *range(place + 2, tokens.shape[-1])]}[fault]
    tokens = tokens[..., list(order)]
    pose, found = policy.read_poses(tokens)
    assert not found and (pose == 0).all() and not rewards.has_form("text2pose", answer_of(policy, tokens[0, 0]))
    poses = torch.stack([example.rotmats, torch.zeros(24, 3, 3)])
    assert [statements_held([example], x[None, None])[0].item() for x in poses] == [1, 0]
    assert statements_held([example], poses[None])[0].item() == 0.5


def test_poses_of_one_prompt_are_answers_of_their_own(world, policy):
    examples = [make_example(world.split, "text2pose", i, np.random.default_rng(0)) for i in range(2)]
    prompt = policy.encode(examples)
    few, many = (policy.sample(prompt, *sizes, max_tokens=4, seeds=[0, 1]) for sizes in ((6, 1), (2, 3)))
    assert many.tokens.shape[:2] == many.has_pose.shape == many.mean.shape[:2] == (2, 2)
    assert many.pose.shape == (2, 2, 3, 144) and few.pose.shape == (2, 6, 1, 144)
    assert torch.equal(many.tokens, few.tokens[:, ::3]) and many.answers == [row[::3] for row in few.answers]


# ---------------------------------------------------------------- imitation and GRPO

def test_eight_poses_are_learned_by_heart_and_then_grpo_follows_its_rewards(world, policy, monkeypatch):
    for stage in (train_sft, train_rft):
        monkeypatch.setattr(stage, "MIX", {"text2pose": 1.0})
    monkeypatch.setattr(train_sft, "MUON_LR", 0.05)
    losses, sft_loss = [], train_sft.sft_loss
    monkeypatch.setattr(train_sft, "sft_loss", lambda *a: losses.append(made := sft_loss(*a)) or made)
    train_sft.train_sft(policy, world.split, SFTConfig(sft_steps=40, sft_batch=16, sft_lr=1e-2), 0)
    assert losses[-1][0] < 0.2 < 5 < losses[0][0]
    examples = eval_examples(world.split, "text2pose", 8)
    own, others = statements_held(examples, respond(policy, examples, 8)["samples"])
    assert own.mean() > others.mean() + 0.2

    scored, score, before = [], rewards.score, policy.frozen_copy()
    monkeypatch.setattr(rewards, "score", lambda *a: scored.append((*a[:2], made := score(*a))) or made)
    config = RFTConfig(**ARMS["discrete, GRPO"][1] | {"pose_prompts": 4, "prompts": 4, "rft_steps": 2})
    rows = train_rft.train_rft(policy, world.split, world.retriever, config, 0, lambda policy: {})
    assert len(rows) == 3 and all("skipped" not in row for row in rows)
    prompts, rollout, (words, poses, _) = scored[0]
    assert rollout.tokens.shape[:2] == (4, 8) and poses["statements"].shape == (4, 8, 1) and rollout.has_pose.any()
    F, _ = hygrpo.advantages(words, poses, rollout.has_pose, rewards.weights())
    of = lambda policy: policy.log_prob(policy.encode(prompts), rollout.tokens, rollout.token_mask).log_prob
    risen = ((of(policy) - of(before)) * rollout.token_mask).sum(-1)  # of each answer, (B, G)
    assert (F * risen).sum() > 0 and F.abs().max() > 1
    assert all(torch.equal(x, y) for x, y in zip(policy.pose_head.parameters(), before.pose_head.parameters()))
