"""Our step against other libraries: the sentence where they are missing, and small runs where they are installed."""

import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from PIL import Image

from builtin.tiny import build_tiny
from lab import against_trl, benchmark
from test_model import CORPUS

SMALL = ["--group_sizes", "4", "--prompt_tokens", "20", "--prompts", "2", "--new_tokens", "3", "--repeats", "2",
         "--poses_per_answer", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as transformers save it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    for part in build_tiny(CORPUS, hidden_size=32, layers=1)[:2]:
        part.save_pretrained(folder)
    return folder


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    benchmark.main()


@pytest.mark.parametrize("name, wanted", against_trl.TRIED.items())
def test_a_missing_library_is_named_with_its_version_before_any_work(name, wanted, monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)
    monkeypatch.setattr(against_trl, "version", missing)
    monkeypatch.setattr(benchmark, "prepare", None)
    with pytest.raises(ValueError, match=f"--against {name} needs {name}, .* pip install {name}=={wanted} "):
        run(monkeypatch, "--against", name)


def test_the_bound_is_the_tokens_that_sharing_saves():
    assert against_trl.bound(1, 209, 12) == 1
    assert against_trl.bound(8, 209, 12) == pytest.approx(8 * 221 / 305)
    assert against_trl.bound(8, 10 ** 6, 12) == pytest.approx(8, rel=1e-3) and against_trl.bound(8, 0, 12) == 1


def test_prompts_are_those_that_the_chat_template_writes(folder):
    """What TRL makes of an example: our tokens without those of the pose-aware encoder."""
    policy = benchmark.load_policy_or_vlm(folder)
    examples = benchmark.make_examples(policy, 2, 20)
    for example, ids in zip(examples, policy.encode(examples).ids):
        content = [{"type": "image", "image": Image.fromarray(example.image)}, {"type": "text", "text": example.prompt}]
        written = policy.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True,
                                                       add_generation_prompt=True, return_dict=True)["input_ids"][0]
        assert ids[ids != policy.pose_feature_id].tolist() == written and len(written) == 20 + 4


@pytest.mark.filterwarnings("ignore")  # of the libraries themselves
def test_a_step_of_trl_and_one_of_ours_are_timed_in_turn(folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("trl")
    run(monkeypatch, "--against", "trl", "--vlm", folder, "--json", tmp_path / "a.json", *SMALL)
    printed, made = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    row, = made["rows"]
    assert (row["P"], row["G"], row["length"]) == (20, 4, 20 + 4 + 4)  # words, image, pose features
    assert row["answer_tokens"] == [3] and len(row["trl"]) == len(row["ours"]) == 2  # the first was to warm up
    assert row["ratio"] == pytest.approx(sum(row["trl"]) / sum(row["ours"])) and min(row["trl"] + row["ours"]) > 0
    assert "| 4 |" in printed and f"| {row['ratio']:.1f} | {row['bound']:.1f} |" in printed and made["version"]


def test_prefix_grouper_gives_the_same_numbers(folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("prefix_grouper")
    run(monkeypatch, "--against", "prefix_grouper", "--vlm", folder, "--json", tmp_path / "a.json", *SMALL)
    row, = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert 0 < row["log_prob_apart"] < 1e-5 and row["gradient_apart"] < 1e-5 and len(row["prefix_grouper"]) == 2
    assert f"| {row['log_prob_apart']:.0e} |" in capsys.readouterr().out
