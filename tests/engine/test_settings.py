"""Every setting is checked before any work, in one sentence with flag, value and what is allowed."""

import os
import re
import sys
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from engine import runtime
from engine.settings import (Count, CountOrNone, Limit, Number, OutputFile, OutputFolder, OutputPicture, SeedNumber,
                             check_settings, read_settings, rules)

# Each command with what it asks for, so that a new one is not forgotten: every script that reads settings is here.
COMMANDS = {
    "train_sft": "WorldConfig SFTConfig", "train_rft": "WorldConfig SFTConfig RFTConfig", "evaluate": "EvaluateConfig",
    "lab.benchmark": "BenchmarkConfig", "lab.experiments": "ExperimentConfig",
    "lab.fullsize": "FullSizeConfig", "lab.seeds": "SeedsConfig", "lab.continued_sft": "ContinuedConfig",
    "lab.pictures": "PicturesConfig", "real.protocols": "ProtocolConfig", "predict": "PredictConfig",
    "demo": "DemoConfig", "lab.exercises": "ExercisesConfig", "lab.figures": "FiguresConfig",
    "lab.paraphrases": "ParaphrasesConfig", "lab.pretrained": "PretrainedConfig", "lab.readout": "ReadoutConfig"}
CHECKED_BY_THEMSELVES = ("claims",)  # in lab/experiments.py
NEEDED = {"lab.seeds": ["--runs", "none"], "real.protocols": ["--protocol", "smpl-24"],
          "lab.figures": ["--runs", "none"], "lab.pretrained": ["--gguf", "none"], "lab.readout": ["--model", "none"]}
ROOT = Path(__file__).parent.parent.parent
KINDS = [(module, getattr(import_module(module), kind)) for module, kinds in COMMANDS.items() for kind in kinds.split()]


def stop(monkeypatch, capsys, module: str, *arguments: str) -> str:
    """The one sentence with which a command ends, through `run` as from a terminal."""
    monkeypatch.setattr(sys, "argv", [f"{module}.py", *NEEDED.get(module, []), *arguments])
    with pytest.raises(SystemExit) as end:
        runtime.run(import_module(module).main)
    printed = capsys.readouterr()
    sentence = end.value.code if isinstance(end.value.code, str) else printed.err.strip()
    assert end.value.code and "\n" not in sentence and "Traceback" not in sentence
    return sentence


def test_every_command_that_reads_settings_is_here():
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts) for place in ("*.py", "lab/*.py", "real/*.py")
             for path in ROOT.glob(place) if re.search(r"read_settings\(|\bParser\(", path.read_text())}
    assert found == COMMANDS.keys()


@pytest.mark.parametrize("module, kind", KINDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_number_and_every_output_says_what_is_allowed(module, kind):
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain = str(get_type_hints(kind)[name])
        if re.search(r"\b(int|float)\b", plain) or name in ("json", "plot", "figure", "stability", "out"):
            assert list(rules(hint)) or name in CHECKED_BY_THEMSELVES, f"{kind.__name__}.{name}"


NUMBERS = [(module, kind, f.name) for module, kind in KINDS for f in fields(kind)
           if re.search(r"\b(int|float)\b", str(get_type_hints(kind)[f.name])) and f.name not in CHECKED_BY_THEMSELVES]


@pytest.mark.parametrize("module, kind, name", NUMBERS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_number_that_cannot_be_is_refused_with_flag_value_and_what_is_allowed(
        monkeypatch, capsys, tmp_path, module, kind, name):
    monkeypatch.chdir(tmp_path)
    hint = get_type_hints(kind)[name]
    is_float = float in (hint, *get_args(hint))
    for value in ("-1", "nan") if is_float else ("-1",):
        assert re.search(rf"--{name} -?[\w.]+: must be \d or more", stop(monkeypatch, capsys, module, f"--{name}", value))
    assert f"--{name}: invalid" in stop(monkeypatch, capsys, module, f"--{name}", "some")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--eval_every", "--group_size", "--rft_steps", "--sft_steps", "--encoder_steps",
                                  "--poses_per_answer", "--inner_epochs", "--accumulate", "--picture"])
def test_zero_is_refused_where_something_is_divided_by_it_or_made_of_it(monkeypatch, capsys, tmp_path, flag):
    sentence = stop(monkeypatch, capsys, "train_rft", flag, "0", "--out", str(tmp_path / "runs"))
    assert sentence == f"train_rft.py: {flag} 0: must be 1 or more" and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments, says", [
    (["--without", "statement"], r"--without statement: there is no reward 'statement'.*statements"),
    (["--reward_weights", "joint=nan"], "--reward_weights joint=nan: must be NAME=NUMBER"),
    (["--reward_weights", "joint=1", "joint=2"], "--reward_weights joint=2: joint was given a weight before"),
    (["--reward_weights", "joint=1", "--without", "joint"], "--without joint: joint was given a weight before"),
    (["--reward_weights", "joint"], "--reward_weights joint: must be NAME=NUMBER"),
    (["--covariance", "round"], "--covariance: invalid choice: 'round'.*diag.*lowrank.*full"),
    (["--credit", "all"], "--credit: invalid choice: 'all'.*joint.*pose"),
    (["--sft_stps", "3"], "there is no setting --sft_stps 3; --help"),
    (["--poses", "none"], "none: no such folder of motion capture"),
    (["--body", "none.pkl"], "none.pkl"),
    (["--out", "file"], "--out file: .*is a file; name a folder"),
    (["--out", "file/runs"], "--out file/runs: .*is a file; name a folder"),
    (["--vlm", "none", "--lora_targets", "q_proj"], "--lora_targets .*: give --lora_rank too"),
    (["--device", "gpu"], "--device gpu is not available"), (["--device", "meta"], "--device meta is not available"),
    (["--device", "hpu"], "--device hpu is not available"),
    (["--sft_batch", "2", "--sft_accumulate", "3"], "a batch of 2 cannot be split.*--sft_batch")])
def test_slips_are_refused_and_leave_nothing(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert re.search(says, stop(monkeypatch, capsys, "train_rft", *arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_holds_no_policy_is_told_before_anything_is_made(monkeypatch, capsys, tmp_path):
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    for module in ("train_sft", "train_rft"):
        assert f"{tmp_path}/runs/sft is in the way: it holds no policy; move it elsewhere" in stop(
            monkeypatch, capsys, module, "--out", str(tmp_path / "runs"))
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "sft"]


@pytest.mark.parametrize("module, flag", [("evaluate", "json"), ("real.protocols", "json"), ("lab.benchmark", "json"),
                                          ("lab.fullsize", "json"), ("lab.seeds", "json"), ("lab.experiments", "json"),
                                          ("lab.experiments", "figure"), ("lab.experiments", "stability"),
                                          ("real.protocols", "plot")])
def test_outputs_that_cannot_be_written_are_refused_before_the_work(monkeypatch, capsys, tmp_path, module, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    more = ["--protocol", "calibration"] if flag == "plot" else []
    say = lambda value: stop(monkeypatch, capsys, module, *more, f"--{flag}", value)
    assert f"--{flag} none/there/m.json: there is no folder none/there" in say("none/there/m.json")
    assert f"--{flag} folder: is a folder" in say("folder")
    if flag != "json":
        assert re.search(rf"--{flag} x.bad: must end in one of .*\.png", say("x.bad"))
        assert f"--{flag} x.pgf: must end in one of" in say("x.pgf")  # Matplotlib knows it, if LaTeX is there
    (tmp_path / "link.png").symlink_to(tmp_path / "none" / "m.json")
    assert f"--{flag} link.png: is a link into {tmp_path}/none, which is not there" in say("link.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link.png"]


@dataclass
class Example:
    count: Count = 1
    perhaps: CountOrNone | None = None
    several: list[Count] = field(default_factory=lambda: [1, 2])
    seed: SeedNumber = 0
    weight: Number = 0.0
    clip: Limit = 0.2
    file: OutputFile | None = None
    picture: OutputPicture | None = None
    out: OutputFolder = "runs"


@pytest.mark.parametrize("good", [
    {}, {"perhaps": 0}, {"several": []}, {"weight": 1e30, "clip": float("inf")}, {"seed": 2 ** 62 - 1},
    {"file": "m.json", "picture": "p.PDF"}, {"file": "/dev/null"}, {"picture": "without_an_ending"}, {"out": "a/b/c"}, {"out": "."}])
def test_what_is_possible_is_not_refused(monkeypatch, tmp_path, good):
    monkeypatch.chdir(tmp_path)
    check_settings(Example(**good))


@pytest.mark.parametrize("bad, says", [
    ({"count": 0}, "--count 0: must be 1 or more"), ({"count": 10 ** 20}, "--count 10*: must be less than 2147483648"),
    ({"perhaps": -1}, "--perhaps -1: must be 0 or more"),
    ({"several": [3, 0]}, "--several 0: must be 1 or more"), ({"weight": float("inf")}, "--weight inf: must be 0 or more"),
    ({"clip": float("nan")}, "--clip nan: must be 0 or more"), ({"seed": 2 ** 62}, "--seed .* less than 4611686018427387904"),
    ({"file": ""}, "--file : is a folder")])
def test_a_configuration_made_in_code_is_checked_alike(monkeypatch, tmp_path, bad, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        check_settings(Example(**bad))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_where_nothing_may_be_written_is_told(tmp_path):
    (tmp_path / "old.json").write_text("")  # it could be written to, and not be replaced
    tmp_path.chmod(0o555)
    for bad in ({"file": str(tmp_path / "m.json")}, {"file": str(tmp_path / "old.json")}, {"out": str(tmp_path / "runs")}):
        with pytest.raises(ValueError, match="cannot be written to"):
            check_settings(Example(**bad))


def test_settings_are_read_and_unknown_ones_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", "--count", "3", "--several", "4", "5"])
    config, = read_settings("An example.", Example)
    assert (config.count, config.several, config.seed) == (3, [4, 5], 0)
