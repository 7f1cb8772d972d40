"""Rewards: each against a case where the truth is obvious; the retrieval model learns and survives saving."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import captions
from builtin import joint_credit
from builtin.denials import signed
from engine import log
import rewards
from body import JOINT, axis_angle_to_matrix, forward_kinematics, matrix_to_rot6d, mirror, remove_heading
from builtin.poses import sample_poses
from builtin.retriever import Retriever, train_retriever
from builtin.sentences import describe
from builtin.tiny import build_tiny

POSES = sample_poses(400, np.random.default_rng(0))
RATES = captions.pose_holds(POSES).double().mean(0)  # of each statement


@pytest.fixture(scope="module")
def retriever():
    rng = np.random.default_rng(1)
    texts = [describe(row, rng)[0] for row in captions.pose_holds(POSES).numpy()]
    tokenizer = build_tiny(texts)[1].tokenizer.backend_tokenizer
    return train_retriever(POSES[:300], tokenizer, 60, 0, torch.device("cpu"), batch_size=64)


def example(task, index, seed=0):
    row = captions.pose_holds(POSES[index]).numpy()
    caption, statements = describe(row, np.random.default_rng(seed))
    answer = {"image2text": f"{caption} {captions.POSE_ANSWER}", "vqa": "The left knee is bent."}.get(task, captions.POSE_ANSWER)
    return SimpleNamespace(task=task, answer=answer, caption=caption, statements=statements, rotmats=POSES[index],
                           holds=row)


def rollout(examples, answers, poses):
    """answers: B x G strings; poses: (B, G, K, 24, 3, 3)."""
    pose = matrix_to_rot6d(poses).flatten(-2)
    return SimpleNamespace(answers=answers, pose=pose, has_pose=torch.ones(pose.shape[:2]).bool())


@pytest.mark.parametrize("task, answer, good", [
    ("text2pose", captions.POSE_ANSWER, 1), ("text2pose", captions.POSE_ANSWER + " " + captions.POSE_ANSWER, 0),
    ("text2pose", "The SMPL pose of this person is.", 0), ("image2pose", captions.POSE_ANSWER, 1), ("image2pose", "", 0),
    ("image2pose", captions.POSE_ANSWER + " Yes.", 0), ("image2text", "They stand. " + captions.POSE_ANSWER, 1),
    ("image2text", "They <POSE> stand. " + captions.POSE_ANSWER, 0), ("image2text", captions.POSE_ANSWER * 2, 0),
    ("image2text", captions.POSE_ANSWER, 0), ("image2text", "They stand.", 0), ("image2text", "They stand " + captions.POSE_ANSWER, 0),
    ("vqa", "The left knee is bent.", 1), ("vqa", captions.POSE_ANSWER, 0), ("vqa", "", 0), ("vqa", "The left knee", 0)])
def test_format(task, answer, good):
    assert rewards.has_form(task, answer) == good


def test_joint_reward_is_one_over_the_distance_and_finite_for_a_perfect_pose():
    joints = forward_kinematics(POSES[:2])[0]
    shifted = joints + torch.tensor([.3, 0, .4]) / 24 ** .5  # |difference| over all joints: 0.5 m
    reward = lambda joints, true: rewards.joint_reward(SimpleNamespace(joints=joints, true_joints=true))
    torch.testing.assert_close(reward(shifted, joints), torch.full((2,), 2.0))
    assert torch.isfinite(reward(joints, joints)).all()


def test_each_task_gets_its_own_terms_and_nan_elsewhere(retriever):
    tasks = ["text2pose", "image2pose", "image2text", "vqa"]
    examples = [example(task, i) for i, task in enumerate(tasks)]
    poses = POSES[:24].view(4, 2, 3, 24, 3, 3)
    text, pose, _ = rewards.score(examples, rollout(examples, [[e.answer, "no"] for e in examples], poses), retriever, RATES)
    has = {name: [tasks[i] for i in range(4) if not value[i].isnan().any()] for name, value in (text | pose).items()}
    assert has == {"format": tasks, "text": ["image2text", "vqa"], "description": ["image2text"], "correct": ["vqa"],
                   "joint": ["image2pose", "image2text"], "semantic": ["text2pose"], "statements": ["text2pose"]}
    assert text["format"].tolist() == [[1, 0]] * 4
    assert text["text"][3, 0].item() == pytest.approx(1, abs=1e-5) and text["text"][3, 1] < .99
    assert text["correct"][3].tolist() == [1, 0]
    said = list(examples[2].statements)  # the truth, and an answer that states nothing
    assert text["description"][2].tolist() == pytest.approx([(1 - RATES[said]).sum().item() / max(4, len(said)), 0])


def test_no_blind_description_is_rewarded():
    """Whatever is said, and however much: its mean over the pictures is zero. Said of its own picture it pays."""
    holds = captions.pose_holds(POSES)
    reward = lambda said, rows: np.mean([rewards.informedness(said, row, RATES) for row in rows])
    for said in ((), (0,), (3, 5), range(12), range(len(captions.STATEMENTS))):
        assert reward(said, holds) == pytest.approx(0, abs=1e-12)
    for i in range(20):
        own = holds[i].nonzero()[:, 0].tolist()
        assert reward(own[:3], holds[i:i + 1]) > 0 and reward(own, holds[i:i + 1]) < 1
    rare = [s.key for s in captions.STATEMENTS].index("the person is upside down")
    assert rewards.informedness([rare], torch.ones(len(RATES)), RATES) > rewards.informedness(
        [0], torch.ones(len(RATES)), RATES)  # 0: standing


def test_statements_and_joint_rewards_know_the_true_pose(retriever):
    examples = [example("text2pose", i) for i in range(8)] + [example("image2pose", i) for i in range(8)]
    true = torch.stack([e.rotmats for e in examples])
    poses = torch.stack([true, true.roll(3, 0), mirror(true)], 1)[:, None]  # (16, 1, 3, 24, 3, 3)
    _, pose, _ = rewards.score(examples, rollout(examples, [[e.answer] for e in examples], poses), retriever, RATES)
    assert (pose["statements"][:8, 0, 0] == 1).all() and (pose["statements"][:8, 0, 1:] < 1).float().mean() > .6
    expected = captions.pose_holds(poses[2, 0, 1])[list(examples[2].statements)].double().mean().item()
    assert pose["statements"][2, 0, 1].item() == pytest.approx(expected)
    assert (pose["joint"][8:, 0, 0] > pose["joint"][8:, 0, 1]).all()


def test_a_joints_part_of_a_reward_moves_with_what_it_decides_alone(retriever):
    """Turn one joint of a pose: only the parts of the joints above it, and its own, may change, where it moves joints;
    of the statements those that the joint is found to decide."""
    task = example("text2pose", 5), example("image2pose", 5)
    decided, moved = joint_credit.decides_statement(), joint_credit.MOVES
    key = lambda name: [s.key for s in captions.STATEMENTS].index(name)
    assert decided[:, key("the left elbow is bent")].nonzero()[:, 0].tolist() == [JOINT["left_elbow"]]
    assert decided[:, key("the head is turned to the left")].sum() == 2 and decided.any(0).all()
    assert moved[0, 1:].all() and not moved[JOINT["head"]].any() and moved[JOINT["left_knee"]].sum() == 2
    for joint in (0, JOINT["left_knee"], JOINT["right_elbow"], JOINT["head"]):
        poses = POSES[[7]].repeat(2, 1, 1, 1)
        poses[1, joint] = poses[1, joint] @ axis_angle_to_matrix(torch.tensor([.5, .4, -.3]))
        pair = poses[None, None].expand(2, -1, -1, -1, -1, -1)  # (2, 1, 2, 24, 3, 3)
        _, pose, parts = rewards.score(task, rollout(task, [[e.answer] for e in task], pair), retriever, RATES)
        change = (parts["joint"][1, 0, 0] - parts["joint"][1, 0, 1]).abs()  # (24,), NaN for hands, feet, head
        above = moved[:, moved[joint]].any(-1) if moved[joint].any() else torch.zeros(24).bool()
        assert ((change > 1e-6) == above).all()
        torch.testing.assert_close(parts["joint"][1, 0, :, 0], pose["joint"][1, 0])  # the root moves all: eq. 7 itself
        said = torch.zeros(2 * captions.S).index_fill_(0, torch.tensor(task[0].statements), 1.0)
        held = signed(captions.pose_holds(poses).float()) * said  # (2, 2 S)
        torch.testing.assert_close(parts["statements"][0, 0], held @ decided.T.float() / (decided.float() @ said),
                                   equal_nan=True)


def test_what_is_denied_is_rewarded_where_it_does_not_hold(retriever):
    """In words and in poses; as much as it tells, which of what mostly does not hold is little."""
    kneels = captions.pose_holds(POSES)[:, list(captions.parse("kneeling, kneeling on the left knee, kneeling on the right knee"))]
    no, yes = kneels.any(1).float().sort(stable=True).indices[[0, -1]].tolist()
    told = example("text2pose", no)
    told.caption, told.statements = "The person is not kneeling.", captions.parse("The person is not kneeling.")
    poses = POSES[[no, yes]][None, None]
    _, pose, by_joint = rewards.score([told], rollout([told], [[captions.POSE_ANSWER]], poses), retriever, RATES)
    assert pose["statements"].tolist() == [[[1, 0]]]
    assert by_joint["statements"][0, 0, :, JOINT["left_knee"]].tolist() == [1, 0]
    assert by_joint["statements"][0, 0, :, JOINT["left_elbow"]].isnan().all()
    seen = [example("image2text", i) for i in (no, yes)]
    words = [["The person is not kneeling. " + captions.POSE_ANSWER]] * 2
    given = rewards.score(seen, rollout(seen, words, POSES[[no, yes]][:, None, None]), retriever, RATES)[0]["description"]
    rate = kneels.any(1).double().mean().item()
    assert given[:, 0].tolist() == pytest.approx([rate / 4, (rate - 1) / 4])


def test_semantic_reward_does_not_see_the_heading(retriever):
    examples = [example("text2pose", i) for i in range(4)]
    angle = torch.tensor(1.1)
    turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    true = torch.stack([e.rotmats for e in examples])
    turned = true.clone()
    turned[:, 0] = turn @ turned[:, 0]
    _, pose, _ = rewards.score(examples, rollout(examples, [[e.answer] for e in examples], torch.stack([true, turned], 1)[:, None]),
                            retriever, RATES)
    torch.testing.assert_close(pose["semantic"][..., 0], pose["semantic"][..., 1], atol=1e-4, rtol=0)


def test_retriever_finds_unseen_poses_far_above_chance(retriever):
    held_out = POSES[300:]
    rng = np.random.default_rng(2)
    texts = [describe(row, rng)[0] for row in captions.pose_holds(held_out).numpy()]
    similarity = retriever.encode_text(texts) @ retriever.encode_pose(remove_heading(held_out)).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    assert (rank < 20).float().mean() > .4  # chance .2


def test_a_sentence_longer_than_the_retriever_is_read_to_its_end(retriever):
    """In parts, as captions of people reach 500 tokens: the vector is that of the mean over all tokens, and short
    sentences beside it keep theirs."""
    most, start = retriever.config["max_tokens"], "The person is not sitting and the arms are not crossed. " * 30
    count = lambda text: len(retriever.tokenizer.encode(text).ids) + sum(
        len(rest.ids) for rest in retriever.tokenizer.encode(text).overflowing)
    assert count(start) > 3 * most
    ends = ["The left knee is bent.", "The right hand is above the head."]
    vectors = retriever.encode_text([start + end for end in ends] + ends)
    assert (vectors[0] - vectors[1]).norm() > 0.01
    torch.testing.assert_close(vectors[2:], retriever.encode_text(ends))
    word = next(word for word in (" knee", " left", " the") if count(word * 2 * most) == 2 * most)
    torch.testing.assert_close(*retriever.encode_text([word * most, word * 2 * most]))  # two parts alike


def test_retriever_saved_and_loaded_is_the_same(retriever, tmp_path):
    retriever.save_pretrained(tmp_path / "judge")
    loaded = Retriever.from_pretrained(tmp_path / "judge")
    texts = ["The left knee is bent.", "", "sitting " * 500]
    assert torch.equal(loaded.encode_text(texts), retriever.encode_text(texts))
    assert torch.isfinite(loaded.encode_text(texts)).all()
    assert torch.equal(loaded.encode_pose(POSES[:5]), retriever.encode_pose(POSES[:5]))
    with pytest.raises(FileNotFoundError, match="train_rft.py"):
        Retriever.from_pretrained(tmp_path)


# ---------------------------------------------------------------- the table

def test_weights_are_the_tables_but_for_those_that_are_named():
    table = {name: reward.weight for name, reward in rewards.REWARDS.items()}
    assert rewards.weights() == table
    changed = rewards.weights(["joint=0.25", "text=-1"], without="format")
    assert changed == table | {"joint": .25, "text": -1, "format": 0}


@pytest.mark.parametrize("change", ["beauty=1", "joint", "joint=", "joint=much", "joint=nan", "joint=inf", "=1"])
def test_a_weight_that_cannot_be_is_named(change):
    with pytest.raises(ValueError, match="the rewards are format|must be NAME=NUMBER"):
        rewards.weights([change])


@pytest.mark.parametrize("function, fault", [
    (lambda c: torch.zeros(2, 2), r"gave a tensor \(2, 2\) where \(2, 2, 3\) is due"),
    (lambda c: c.nothing, "AttributeError")])
def test_a_reward_that_fails_is_named(retriever, monkeypatch, function, fault):
    examples = [example("text2pose", i) for i in range(2)]
    for e in examples:
        e.prompt = "a prompt"
    monkeypatch.setitem(rewards.REWARDS, "mine", rewards.Reward(1.0, "poses", ("text2pose",), function))
    answers = rollout(examples, [[e.answer] * 2 for e in examples], POSES[:12].view(2, 2, 3, 24, 3, 3))
    with pytest.raises(ValueError, match=f"the reward `mine` failed on the text2pose example 'a prompt'.*{fault}"):
        rewards.score(examples, answers, retriever, torch.zeros(len(captions.STATEMENTS)))


def test_a_reward_that_is_not_finite_is_found_where_it_is_due_and_there_alone():
    examples = [example("text2pose", 0), example("vqa", 1)]
    examples[0].statements = ()
    given = SimpleNamespace(has_pose=torch.tensor([[True, False], [False, False]]))
    words, poses = {"format": torch.ones(2, 2)}, {"semantic": torch.ones(2, 2, 3), "statements": torch.ones(2, 2, 3)}
    poses["semantic"][0, 1] = poses["semantic"][1] = poses["statements"][:] = torch.nan
    assert log.broken(examples, given, words, poses) == []
    poses["semantic"][0, 0, 1], words["format"][1, 0] = torch.inf, torch.nan
    assert log.broken(examples, given, words, poses) == ["format", "semantic"]
