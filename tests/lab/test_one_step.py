"""docs/one_step.md: its numbers are those of the code, each follows from those before it, and the clip bites on one."""

import math
import re
from pathlib import Path

import pytest

from lab import one_step

PAGE = (Path(__file__).parent.parent.parent / "docs" / "one_step.md").read_text()
CALCULATOR = {"abs": abs, "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "min": min}


@pytest.fixture(scope="module")
def blocks():
    return one_step.blocks()


def test_the_page_shows_what_the_command_prints(blocks, capsys):
    assert re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL) == list(blocks.values())
    one_step.main()
    printed = capsys.readouterr().out
    assert all(text in printed for text in blocks.values())


def test_a_calculator_gives_what_stands_behind_each_line(blocks):
    lines = [line for text in blocks.values() for line in text.splitlines()]
    for line in lines:
        _, formula, value = line.removesuffix("   held by the clip").split(" = ")
        assert eval(formula.replace("^", "**"), CALCULATOR) == pytest.approx(float(value), abs=3e-4), line
    assert len(lines) > 70


def test_each_number_was_given_or_printed_before(blocks):
    """None falls from the sky: whatever a line calculates with stands above it, or is a setting that the page names."""
    known = {"1", "2", "3", "4", "12", "0", "0.0001", "0.5", "0.1", "0.2", "0.4", "0.6", "0.8"}  # counts, what is given
    for line in (line for text in blocks.values() for line in text.splitlines()):
        _, formula, value = line.removesuffix("   held by the clip").split(" = ")
        used = re.findall(r"[\d.]+", formula)
        assert set(used) <= known, line
        known.add(value.removeprefix("-"))


def test_the_sentences_give_what_the_code_takes():
    given = " ".join(PAGE[PAGE.index("## What is given"):PAGE.index("## Rewards")].split())
    short = lambda x: re.sub(r"\b0\.", ".", f"{x:.4g}")
    pair = lambda x: f"({short(x[0].item())}, {short(x[1].item())})"
    poses = [pair(pose) for pose in one_step.SAMPLES.flatten(0, 2)]
    settings = one_step.SETTINGS
    for sentence in (
            "probabilities are {}, {}, {} for the first and {}, {}, {} for the second".format(
                *map(short, one_step.PROBS.flatten().tolist())),
            f"answer 1 were sampled at {poses[0]} and {poses[1]}, those of answer 2 at {poses[2]} and {poses[3]}",
            f"The true pose is {pair(one_step.TRUTH)}",
            "The words got rewards of {} and {}".format(*map(short, one_step.WORD_REWARD[0].tolist())),
            f"Rewards of words weigh {short(one_step.WEIGHTS['words'])}, those of poses "
            f"{short(one_step.WEIGHTS['nearness'])}", f"D = {one_step.D}", f"sigma is {short(one_step.SIGMA)} and",
            f"Clip: {short(1 - settings['clip_low'])} to {short(1 + settings['clip_high'])}",
            f"`beta_text` is {short(settings['beta_text'])}, `beta_pose` {short(settings['beta_pose'])}"):
        assert sentence in given, sentence


def test_the_clip_holds_one_ratio_of_the_second_inner_step_and_none_of_the_first():
    first, second = one_step.inner_steps().steps
    clips = ("text_clip_low", "text_clip_high", "pose_clip_low", "pose_clip_high")
    assert [first.metrics[name].item() for name in clips] == [0, 0, 0, 0]
    assert [second.metrics[name].item() for name in clips] == [0, 0, .125, 0]  # of 8 ratios of joints
    assert (first.text_ratio == 1).all() and (first.pose_ratio == 1).all()
    assert first.loss.item() == pytest.approx(0, abs=1e-6)
