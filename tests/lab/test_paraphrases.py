"""Sentences by hand with what they mean: what the file may hold, how a pose is scored, and the command."""

import json

import numpy as np
import pytest
import torch

import captions
from body import axis_angle_to_matrix
from builtin.poses import sample_poses
from builtin.splits import make_split
from builtin.tiny import build_tiny
from engine.saving import save_policy
from lab import paraphrases
from model import PosePolicy

GROUPS = paraphrases.read_paraphrases()
SENTENCES = [(sentence, meant) for group in GROUPS.values() for sentence, meant in group.items()]


def test_no_table_of_phrasings_reads_the_sentences():
    """What the parser reads a policy may have been taught word for word."""
    assert len(SENTENCES) >= 60 and len({sentence for sentence, _ in SENTENCES}) == len(SENTENCES)
    assert {sentence: captions.parse(sentence) for sentence, _ in SENTENCES if captions.parse(sentence)} == {}


def test_each_meaning_holds_of_some_built_in_pose():
    holds = captions.pose_holds(sample_poses(8000, np.random.default_rng(5)))
    share = paraphrases.fulfilled([meant for _, meant in SENTENCES], holds)
    assert [sentence for (sentence, _), row in zip(SENTENCES, share) if row.max() < 1] == []


def test_all_of_a_meaning_is_wanted_and_any_of_its_alternatives_will_do():
    row = lambda *true: [i in true for i in range(captions.S)]
    holds = torch.tensor([row(1, 2), row(2), row(7), row(3, 1)])
    share = paraphrases.fulfilled([[[1], [2, 3]], [[7]]], holds)
    assert share.tolist() == [[1, .5, 0, 1], [0, 0, 1, 0]]


def test_own_poses_others_poses_and_one_pose_by_hand():
    """Standing upright, which is the rest pose, and lying on the back: each does what its own sentence means."""
    stands = torch.eye(3).repeat(24, 1, 1)
    lies = stands.clone()
    lies[0] = axis_angle_to_matrix(torch.tensor([-np.pi / 2, 0, 0]).float())
    meanings = [[[paraphrases.KEYS[f"the person is {what}"]]] for what in ("standing", "lying on their back")]
    own, others = paraphrases.held(meanings, torch.stack([stands, lies])[:, None].repeat(1, 3, 1, 1, 1))
    assert own.tolist() == [1, 1] and others.tolist() == [0, 0]
    own, others = paraphrases.held(meanings, torch.stack([lies, lies])[:, None])
    assert own.tolist() == [0, 1] and others.tolist() == [0, 1]
    train = make_split(torch.stack([lies, stands, stands]), np.random.default_rng(0), images=False)
    assert sorted(paraphrases.one_pose(meanings, train)) == [0, 1]
    twice = [*meanings, meanings[0]]
    assert paraphrases.one_pose(twice, train).tolist() == [1, 0, 1]


def test_a_statement_that_is_not_in_the_table_is_named(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"group": {"Hop.": ["the person hops"]}}))
    with pytest.raises(ValueError, match="p.json: there is no statement 'the person hops'"):
        paraphrases.read_paraphrases(tmp_path / "p.json")


def test_the_command_compares_policies_and_keeps_each_sentence(tmp_path, monkeypatch, capsys, short_answers):
    torch.manual_seed(0)
    policy = PosePolicy(*build_tiny(["A person."], hidden_size=32, layers=1))
    save_policy(policy, tmp_path / "a")
    monkeypatch.setattr(paraphrases, "read_paraphrases", lambda: {
        name: dict(list(group.items())[:3]) for name, group in GROUPS.items()})
    monkeypatch.setattr(paraphrases, "load_splits", lambda poses, counts, seed, images: {
        name: make_split(sample_poses(6, np.random.default_rng(0)), np.random.default_rng(0), images=images)
        for name in counts})
    a, json_file, drawn = str(tmp_path / "a"), tmp_path / "p.json", tmp_path / "p.png"
    monkeypatch.setattr("sys.argv", ["paraphrases", "--model", a, a + "/", "--samples", "2", "--eval_poses", "6",
                                     "--json", str(json_file), "--picture", str(drawn)])
    paraphrases.main()
    printed, made = capsys.readouterr().out, json.loads(json_file.read_text())
    assert list(made["table"]) == ["all paraphrases", "in other words", "scenes", "test captions"]
    assert "all paraphrases, 6" in printed and "scenes, 3" in printed and "test captions, 6" in printed
    floor, first, again = made["table"]["all paraphrases"].values()
    assert first["held"] == again["held"] and again["against_first"]["difference"] == 0
    held = [row[a] for row in made["held"].values()]
    assert len(held) == 6 and first["held"] == pytest.approx(np.mean(held), abs=1e-3)
    assert made["table"]["scenes"][a]["held"] == pytest.approx(np.mean(held[3:]), abs=1e-3)
    assert first["form"] == 0 and floor["held"] >= first["held"] and drawn.stat().st_size > 10_000
    own = first["own_minus_others"]
    assert own["difference"] == pytest.approx(first["held"] - first["shuffled"]) and "own_minus_others" not in floor
    assert own["interval"][0] <= own["difference"] <= own["interval"][1]
    assert f"own minus others {own['difference']:+.3f} [" in printed
