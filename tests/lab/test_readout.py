"""A linear readout of sentences: which tokens count, what it finds where there is something to find, the command."""

import json

import numpy as np
import pytest
import torch

from body import axis_rotation
from builtin.tiny import build_tiny
from engine.saving import save_policy
from lab import paraphrases, readout
from model import PosePolicy


def test_padding_changes_no_feature_and_layer_0_is_a_bag_of_words():
    torch.manual_seed(0)
    vlm, processor, _ = build_tiny(["the left knee is bent"], hidden_size=32, layers=2)
    said = ["the left knee is bent", "the bent left knee is", "both knees are bent and the person sits on the ground"]
    alone, together = (readout.sentence_features(vlm.eval(), processor.tokenizer, said, batch) for batch in (1, 3))
    assert alone.shape == (3, 3, 32) and readout.layers_read(vlm) == [0, 1, 2] and torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(alone[0, 0], alone[1, 0], atol=1e-5)  # the same words
    assert not torch.allclose(alone[0, -1], alone[1, -1], atol=1e-2)  # in another order


def test_a_readout_finds_what_the_features_hold_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    angle = torch.from_numpy(rng.uniform(-60, 60, 200)).float()
    poses = torch.eye(3).repeat(200, 24, 1, 1)
    poses[:, 4] = axis_rotation(0, angle.abs() * 2)  # the left knee
    features = torch.stack([torch.stack([angle.abs(), angle], 1), torch.randn(200, 2)], 1)  # layers: signal, noise
    asked = {"test captions": features[:2]}
    bends = paraphrases.KEYS["the left knee is bent"]
    straight = paraphrases.KEYS["the left knee is straight"]
    meanings = {"test captions": [[[bends] if a > 40 else [straight]] for a in (100, 0)]}
    asked["test captions"] = torch.tensor([[[55.0, 0.0]] * 2, [[0.0, 0.0]] * 2])
    signal, noise = readout.readout([0, 1], features, poses, asked, meanings)
    assert signal["held"] == 1.0 and signal["own_minus_others"]["difference"] == 1.0
    assert noise["own_minus_others"]["difference"] < 0.5


def test_the_command_compares_a_model_with_random_weights(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    policy = PosePolicy(*build_tiny(["A person."], hidden_size=32, layers=1))
    save_policy(policy, tmp_path / "sft")
    monkeypatch.setattr("sys.argv", ["readout.py", "--model", str(tmp_path / "sft"), "--captions", "40", "--eval_poses",
                                     "12", "--json", str(tmp_path / "made.json")])
    readout.main()
    made = json.loads((tmp_path / "made.json").read_text())["models"]
    assert list(made) == [str(tmp_path / "sft"), f"{tmp_path / 'sft'}, random weights"]
    rows = list(made.values())
    assert rows[0] != rows[1] and all(0 <= row["held"] <= 1 for row in rows[0] + rows[1])
    assert capsys.readouterr().out.count("| 1 |") == 2


def test_one_caption_has_no_spread_and_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["readout.py", "--model", "none", "--captions", "1"])
    with pytest.raises(ValueError, match="--captions 1: must be 2 or more"):
        readout.main()


def test_a_folder_without_a_model_is_refused_before_the_first_one_is_run(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_policy(PosePolicy(*build_tiny(["A person."], hidden_size=32, layers=1)), tmp_path / "sft")
    monkeypatch.setattr("sys.argv", ["readout.py", "--model", str(tmp_path / "sft"), str(tmp_path / "none")])
    monkeypatch.setattr(readout, "load_splits", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match="none"):
        readout.main()
