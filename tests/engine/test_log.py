"""The remarks at the end of a run: each is made of the log that shows it, and of no other. And a log that was lost."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from engine.log import Steps, remarks
from train_rft import RFTConfig

WORDS = {"ratio": "Every ratio was 1", "never": "No clip was ever active", "held": "of the ratios, which then teach nothing",
         "poses": "no pose was better than another", "words": "all answers were alike", "flat": "Flat, from the first third"}


def log(steps: int = 60, rise: float = 1.0, **changes) -> list[dict]:
    """A healthy log of text to pose and questions; changes: its numbers that are other, at every step."""
    noise = np.random.default_rng(0).normal(0, 0.05, steps)
    rows = [{"step": 0, "val_judge_r5": .2}]
    for i in range(steps):
        rows.append({"step": i + 1, "task": "vqa" if i % 2 else "text2pose", "text_clip_low": 0.0, "text_clip_high": 0.02,
                     "text_flat_groups": .3 if i % 2 else 1.0})
        rows[-1] |= {"correct": .5 + rise * i / steps + noise[i]} if i % 2 else {
            "pose_flat_groups": 0.0, "pose_clip_low": .01, "pose_clip_high": .01,
            "statements": .4 + rise * i / steps + noise[i]}
        rows[-1] |= {name: value for name, value in changes.items() if name in rows[-1]}
    return rows


@pytest.mark.parametrize("shown, changes, settings", [
    (set(), {}, {"inner_epochs": 4}), ({"ratio"}, {}, {}),
    ({"never"}, {"text_clip_high": 0, "pose_clip_low": 0, "pose_clip_high": 0}, {"inner_epochs": 4}),
    ({"held"}, {"pose_clip_high": .4}, {"inner_epochs": 4}), ({"ratio", "poses"}, {"pose_flat_groups": 1.0}, {}),
    ({"ratio"}, {"pose_flat_groups": 1.0}, {"pose_weight": 0.0}), ({"ratio", "words"}, {"text_flat_groups": .9}, {}),
    ({"ratio", "flat"}, {"rise": 0.0}, {})])
def test_a_remark_is_made_where_the_log_shows_it(shown, changes, settings):
    told = remarks(log(**changes), RFTConfig(**settings))
    assert {name for name, words in WORDS.items() if any(words in sentence for sentence in told)} == shown
    assert len(told) == len(shown) and all(sentence.endswith(".") for sentence in told)


def test_rewards_that_did_not_rise_are_named_with_their_numbers_unless_they_have_no_weight_or_few_steps():
    sentence, = remarks(log(rise=0.0), RFTConfig(inner_epochs=4))
    assert "correct (0." in sentence and "statements (0." in sentence
    sentence, = remarks(log(rise=0.0), RFTConfig(inner_epochs=4, without="correct"))
    assert "correct" not in sentence and "statements (0." in sentence
    assert remarks(log(rise=0.0, steps=20), RFTConfig(inner_epochs=4)) == []


@pytest.mark.parametrize("kept", [range(0), range(3), range(4)])
def test_a_run_that_goes_on_without_its_log_does_not_call_a_later_policy_that_of_step_0(kept, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in kept))
    rows = Steps(SimpleNamespace(step=3), None, None, lambda policy: {"val_mpjpe_mean": 1.0}, tmp_path).rows
    assert rows == [{"step": step} for step in kept]
    assert ("lacks rows of the first 3 steps" in capsys.readouterr().out) == (len(kept) < 4)
