"""Nothing lost: runs that are killed anywhere end in the same bits, files are whole, what is not finite is skipped."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hygrpo
import rewards
import train_rft
from builtin.poses import sample_poses
from builtin.retriever import Retriever
from builtin.splits import make_split
from engine import checkpoint, log
from engine.checkpoint import TrainingState, read_log, atomic_folder, atomic_write
from engine.saving import load_policy
from lab import pictures
from model import PosePolicy

ROOT = Path(__file__).parent.parent.parent
SMALL = ["--train_poses", "48", "--eval_poses", "8", "--encoder_steps", "5", "--sft_steps", "7", "--sft_batch", "8",
         "--retriever_steps", "5", "--rft_steps", "9", "--prompts", "4", "--group_size", "2", "--poses_per_answer", "2",
         "--eval_every", "5", "--device", "cpu"]


# Before a run: the slowest part of it, which is only drawn, is left out (test_train.py has it), and answers of a policy
# that has learned nothing end after 16 tokens.
PREPARED = """
from functools import partialmethod
import model, train_rft
from lab import pictures
pictures.before_after = train_rft.curves = pictures.progression = lambda *args, **kwargs: None
model.PosePolicy.sample = partialmethod(model.PosePolicy.sample, max_tokens=16)
"""
SCRIPT = PREPARED + """
import sys
from engine import checkpoint, runtime
checkpoint.KEEP_SECONDS, sys.argv = 0, arguments  # the state is kept at every step
runtime.run(train_rft.main)
"""


class Killed(BaseException):
    """Nothing catches it, and nothing is tidied up after it: what is on the disk is what a kill leaves."""


def chain(monkeypatch, out: Path, *more: str) -> None:
    for module, name in ((pictures, "before_after"), (train_rft, "curves"), (pictures, "progression"),
                         (PosePolicy, "sample")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back what PREPARED changes, after the test
    exec(PREPARED, {})
    monkeypatch.setattr(sys, "argv", [*arguments(out), *more])
    train_rft.main()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, by a Python of its own."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    subprocess.run([sys.executable, "-c", f"arguments = {arguments(out)}\n{SCRIPT}"], cwd=ROOT, capture_output=True,
                   check=True)
    return out


def arguments(out: Path) -> list[str]:
    return ["train_rft.py", "--out", str(out), *SMALL]


def assert_same_run(out: Path, whole: Path) -> None:
    for name in ("encoders", "sft", "rft", "reward", "judge"):
        for file in (whole / name).glob("*.safetensors"):
            ours, theirs = load_file(out / name / file.name), load_file(file)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for name in ("log.jsonl", "samples.jsonl", "metrics.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(out.glob("*.state")) and not list(out.rglob("*.partial")) and not list(out.glob(".*"))


def test_a_process_that_has_set_its_threads_ends_in_the_bits_of_a_fresh_one(whole, monkeypatch, tmp_path):
    """Python orders its sets by another seed in each process, and other tests ran in this one: no part of it either."""
    threads = torch.get_num_threads()
    for count in (1, 2, threads):
        torch.set_num_threads(count)
    chain(monkeypatch, tmp_path / "runs")
    assert_same_run(tmp_path / "runs", whole)


@pytest.mark.parametrize("due", [
    ["update", "replace", "save", "flush", "append"],
    pytest.param(["update", "replace", "update", "save", "update", "flush", "update", "append", "replace", "update",
                  "update", "append", "update", "flush", "update"], marks=pytest.mark.slow)],
    ids=["five times", "ten times and more"])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(whole, monkeypatch, tmp_path, due):
    """At random updates, in the middle of writing a state, a log line or a folder, each time going on from what is
    there."""
    monkeypatch.setattr(checkpoint, "KEEP_SECONDS", 2)  # by this clock, every other step
    monkeypatch.setattr(checkpoint, "monotonic", iter(range(10 ** 6)).__next__)
    rng, left, kills = np.random.default_rng(0), {}, []

    def deadly(name, function):
        """The function, but the call that is due dies: before it does anything, or when it has done all."""
        def wrapped(*args, **kwargs):
            left[name] = left.get(name, -1) - 1
            if left[name] == 0 and rng.random() < .5:
                raise Killed(name)
            result = function(*args, **kwargs)
            if left[name] == 0:
                raise Killed(name)
            return result
        return wrapped

    monkeypatch.setattr(TrainingState, "update", deadly("update", TrainingState.update))
    monkeypatch.setattr(checkpoint.os, "replace", deadly("replace", os.replace))
    monkeypatch.setattr(checkpoint.torch, "save", deadly("save", torch.save))
    monkeypatch.setattr(checkpoint, "flush", deadly("flush", checkpoint.flush))
    monkeypatch.setattr(log, "append", deadly("append", checkpoint.append))
    for name in due:
        left.clear()
        left[name] = int(rng.integers(1, 5))
        try:
            chain(monkeypatch, tmp_path / "runs")
            break
        except Killed as kill:
            kills.append(str(kill))
    else:
        left.clear()
        chain(monkeypatch, tmp_path / "runs")
    assert len(kills) >= min(10, len(due)) and {"update", "replace", "save", "flush", "append"} <= set(kills)
    assert_same_run(tmp_path / "runs", whole)


def test_a_process_killed_by_the_system_goes_on_to_the_same_bits(fork, whole, tmp_path, monkeypatch):
    """SIGKILL while stage two runs; then Ctrl-C, which says how to go on; then to the end."""
    for name in ("encoders", "sft", "reward", "judge"):  # what comes before it
        shutil.copytree(whole / name, tmp_path / "runs" / name)
    for config in whole.glob("*_config.json"):
        shutil.copy(config, tmp_path / "runs")
    log_file = tmp_path / "runs" / "log.jsonl"

    def start_and_stop(at_line: int, how: int) -> tuple[int, str, str]:
        script = fork(exec, SCRIPT, {"arguments": arguments(tmp_path / "runs")})
        script.wait_for(lambda: log_file.exists() and len(log_file.read_text().splitlines()) >= at_line)
        script.signal(how)
        return script.end(timeout=120)

    assert start_and_stop(3, signal.SIGKILL)[0] == -signal.SIGKILL
    code, _, errors = start_and_stop(6, signal.SIGINT)
    assert code == 130 and "call the same command again to go on" in errors
    assert "Traceback" not in errors
    chain(monkeypatch, tmp_path / "runs")  # in this process, which rounds alike
    assert_same_run(tmp_path / "runs", whole)


# ---------------------------------------------------------------- files

def test_a_file_is_wholly_new_or_as_it_was(monkeypatch, tmp_path):
    path = tmp_path / "metrics.json"
    atomic_write(path, "first")

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint, "flush", full)
    with pytest.raises(OSError):
        atomic_write(path, "second, and longer")
    assert path.read_text() == "first"
    monkeypatch.undo()
    atomic_write(path, "third")
    assert path.read_text() == "third" and [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no file system here that cannot flush")
@pytest.mark.parametrize("path", ["/proc/self", "/proc/self/status"])
def test_what_the_system_cannot_flush_stops_no_writing(path):
    descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError):  # as network shares answer for a folder
        os.fsync(descriptor)
    os.close(descriptor)
    checkpoint.flush(Path(path))


@pytest.mark.parametrize("number, passes", [(errno.EINVAL, True), (errno.EACCES, True), (errno.EIO, False),
                                            (errno.ENOSPC, False)])
def test_a_folder_that_cannot_be_flushed_is_written_all_the_same_but_a_broken_disk_is_told(
        monkeypatch, tmp_path, number, passes):
    """EACCES: Windows opens no folder. EIO and ENOSPC: what was written did not arrive."""
    whole, call = os.open, "open" if number == errno.EACCES else "fsync"

    def fails(path, *flags, **options):
        if call == "open" and not Path(path).is_dir():
            return whole(path, *flags, **options)
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(checkpoint.os, call, fails)
    if not passes:
        with pytest.raises(OSError, match=os.strerror(number)):
            atomic_write(tmp_path / "metrics.json", "new")
        return
    atomic_write(tmp_path / "metrics.json", "new")
    with atomic_folder(tmp_path / "rft") as partial:
        (partial / "a").write_text("first")
    assert (tmp_path / "metrics.json").read_text() == "new" and (tmp_path / "rft" / "a").read_text() == "first"


@pytest.mark.parametrize("how", ["raises", "killed in the renaming"])
def test_a_folder_is_wholly_new_or_as_it_was(monkeypatch, tmp_path, how):
    folder = tmp_path / "rft"
    with atomic_folder(folder) as partial:
        (partial / "a").write_text("first")
    with pytest.raises(ZeroDivisionError):
        if how == "raises":
            with atomic_folder(folder) as partial:
                (partial / "a").write_text("second")
                1 / 0
        else:
            monkeypatch.setattr(checkpoint, "flush", lambda path: 1 / 0)
            with atomic_folder(folder) as partial:
                (partial / "a").write_text("second")
    assert (folder / "a").read_text() == "first"
    monkeypatch.undo()
    with atomic_folder(folder) as partial:
        assert not list(partial.iterdir())  # nothing is left of what was begun
        (partial / "b").write_text("third")
    assert [p.name for p in folder.iterdir()] == ["b"] and [p.name for p in tmp_path.iterdir()] == ["rft"]


def test_a_folder_killed_between_its_renamings_is_found_again(monkeypatch, tmp_path):
    folder, rename = tmp_path / "rft", Path.rename
    with atomic_folder(folder) as partial:
        (partial / "a").write_text("first")
    monkeypatch.setattr(Path, "rename", lambda path, to: 1 / 0 if path == partial else rename(path, to))
    with pytest.raises(ZeroDivisionError), atomic_folder(folder):
        (partial / "a").write_text("second")
    monkeypatch.undo()
    assert not folder.exists()  # it has its other name
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError  # whatever becomes of the next writing
    assert (folder / "a").read_text() == "first"


def test_a_copy_that_a_user_calls_old_or_new_stays(tmp_path):
    for name in ("rft", "rft.old", "rft.new"):
        (tmp_path / name).mkdir()
    with atomic_folder(tmp_path / "rft") as partial:
        (partial / "a").write_text("second")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rft", "rft.new", "rft.old"]


def test_ctrl_c_says_whether_there_is_something_to_go_on_from(tmp_path):
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    parts = layer, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), np.random.default_rng(0)
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests in the background
    for path, says in ((tmp_path / "a.state", "again to go on"), (None, "again to begin it anew: nothing of it is kept")):
        with pytest.raises(KeyboardInterrupt, match=f"step 1 of 3; call the same command {says}"):
            for _ in TrainingState(path, *parts).steps(3, "SFT"):
                signal.raise_signal(signal.SIGINT)
        assert path is None or path.exists()
        assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    state, _ = small_state(tmp_path / "a.state", 3)
    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        for _ in state.steps(3, "SFT"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the step went on")


def test_the_gradient_is_clipped_and_its_norm_before_is_told(tmp_path):
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    state, before = TrainingState(None, layer, optimizer, schedule, np.random.default_rng(0)), layer.weight.item()
    (100 * layer.weight.sum()).backward()
    assert state.update(0.0, max_norm=1.0) == pytest.approx(100)
    assert before - layer.weight.item() == pytest.approx(1, abs=1e-4)


def test_updates_that_could_not_be_made_count_only_in_a_row():
    state, layer = small_state(None, 100)
    for _ in range(checkpoint.MAX_SKIPPED + 2):
        for loss in (float("nan"), 1.0):
            layer.weight.sum().backward()
            state.update(loss)
    assert state.skipped == checkpoint.MAX_SKIPPED + 2


def test_a_log_is_cut_where_the_state_was_kept_and_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(6)) + '{"step": 6, "val')
    assert [row["step"] for row in read_log(path, 4)] == [0, 1, 2, 3, 4]
    assert len(path.read_text().splitlines()) == 5
    for line in (b'{"st', b"null", b"[3]", b'{"a": 1}', b'{"step": "1"}', b'{"step\xff'):
        path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
        with pytest.raises(ValueError, match="log.jsonl, line 2 is not JSON of a step"):
            read_log(path, 4)


def small_state(path: Path | None, steps: int, rng=None) -> tuple[TrainingState, torch.nn.Module]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=.1, fused=True)
    schedule = checkpoint.warm_up_and_decay(optimizer, steps)
    return TrainingState(path, layer, optimizer, schedule, rng or np.random.default_rng(0)), layer


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b"\x80\x04N.", lambda b: b[:-200]])
def test_a_state_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "sft.state"
    state, _ = small_state(path, 4)
    state._write()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="sft.state cannot be gone on from .*move it elsewhere"):
        small_state(path, 4)


def test_a_state_runs_no_code(tmp_path):
    path = tmp_path / "sft.state"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)
    torch.save({"tensors": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be gone on from"):
        small_state(path, 4)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("call, fault", [("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP), ("open", errno.EACCES)])
def test_a_folder_that_cannot_be_flushed_stops_no_write(monkeypatch, tmp_path, call, fault):
    """As network shares (the first two) and Windows have it, where a folder cannot even be opened."""
    real = getattr(os, call)

    def refuse(what, *more):
        if os.path.isdir(what if call == "open" else f"/proc/self/fd/{what}"):
            raise OSError(fault, os.strerror(fault))
        return real(what, *more)
    monkeypatch.setattr(checkpoint.os, call, refuse)
    atomic_write(tmp_path / "metrics.json", "whole")
    with atomic_folder(tmp_path / "rft") as partial:
        (partial / "a").mkdir()
        (partial / "a" / "b").write_text("whole")
    assert (tmp_path / "metrics.json").read_text() == (tmp_path / "rft" / "a" / "b").read_text() == "whole"


@pytest.mark.parametrize("fault, is_whole", [(errno.EINVAL, True), (errno.EIO, False), (errno.ENOSPC, False)])
def test_a_file_that_the_disk_does_not_take_is_a_fault_but_not_one_that_cannot_be_flushed(
        monkeypatch, tmp_path, fault, is_whole):
    def refuse(descriptor):
        raise OSError(fault, os.strerror(fault))
    atomic_write(tmp_path / "metrics.json", "old")
    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with nullcontext() if is_whole else pytest.raises(OSError, match=os.strerror(fault)):
        atomic_write(tmp_path / "metrics.json", "new")
    assert (tmp_path / "metrics.json").read_text() == ("new" if is_whole else "old")
    assert len(list(tmp_path.iterdir())) == 1


def test_text_goes_into_a_device_and_through_a_link_which_both_stay(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    atomic_write(tmp_path / "link", "whole")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "whole"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(tmp_path / "pipe", "whole")
    assert os.read(reader, 9) == b"whole" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_text_for_dev_stdout_comes_after_what_was_printed_to_the_same_file(tmp_path, monkeypatch):
    with open(tmp_path / "out.txt", "w") as out, monkeypatch.context() as patch:
        saved = os.dup(1)
        os.dup2(out.fileno(), 1)  # as `> out.txt`
        try:
            patch.setattr(sys, "stdout", out)
            print("a table")
            atomic_write(Path("/dev/stdout"), "{}\n")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert (tmp_path / "out.txt").read_text() == "a table\n{}\n"


# ---------------------------------------------------------------- faults

def train(state: TrainingState, layer: torch.nn.Module, steps: int, spoil) -> list[float]:
    norms = []
    for bar in state.steps(steps, "test"):
        loss = (layer(torch.randn(4, 2, generator=torch.Generator().manual_seed(state.step))) - 1).square().mean()
        loss = spoil(state.step, loss)
        loss.backward()
        norms.append(state.update(loss.item()))
    return norms


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(value):
    state, layer = small_state(None, 6)
    before = []

    def spoil(step, loss):
        before.append(layer.weight.clone())
        return loss * value if step in (2, 3) else loss
    train(state, layer, 6, spoil)
    assert state.skipped == 2 and state.skipped_in_a_row == 0
    assert torch.equal(before[2], before[3]) and torch.equal(before[3], before[4])
    assert not torch.equal(before[4], before[5]) and torch.isfinite(layer.weight).all()


def test_a_gradient_that_is_not_finite_changes_nothing():
    state, layer = small_state(None, 4)
    layer.weight.register_hook(lambda grad: grad * torch.nan if state.step == 1 else grad)
    train(state, layer, 4, lambda step, loss: loss)
    assert state.skipped == 1 and torch.isfinite(layer.weight).all()


def test_many_in_a_row_end_the_run_and_the_last_good_state_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "KEEP_SECONDS", 0)
    state, layer = small_state(tmp_path / "rft.state", 40)
    with pytest.raises(ValueError, match="step 15: 10 updates in a row.*learning rate.*rft.state"):
        train(state, layer, 40, lambda step, loss: loss * torch.nan if step >= 5 else loss)
    again, _ = small_state(tmp_path / "rft.state", 40)
    assert again.step == 5 and again.skipped == 0


def test_the_state_is_kept_by_the_clock(monkeypatch, tmp_path):
    clock, kept = [0.0], []
    monkeypatch.setattr(checkpoint, "monotonic", lambda: clock[0])
    monkeypatch.setattr(TrainingState, "_write", lambda state: kept.append(state.step))
    state, layer = small_state(tmp_path / "rft.state", 9)

    def tick(step, loss):
        clock[0] += 12  # seconds a step
        return loss
    train(state, layer, 9, tick)
    assert kept == [3, 6, 9]  # after 36 seconds, the first step that is 30 or more from the last writing


def test_an_update_that_is_not_made_leaves_the_schedule_where_it_was():
    """The first too, which torch warns of where the schedule goes on alone: the learning rate counts the updates made."""
    rates = {}
    for name, skipped in (("whole", ()), ("skipped", (0, 3))):
        state, layer = small_state(None, 6)
        rates[name] = []

        def spoil(step, loss):
            rates[name].append(state.optimizer.param_groups[0]["lr"])
            return loss * torch.nan if step in skipped else loss
        train(state, layer, 6, spoil)
    assert rates["skipped"] == [rates["whole"][made] for made in (0, 0, 1, 2, 2, 3)]


def test_a_run_stopped_after_updates_that_were_not_made_ends_in_the_same_bits(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "KEEP_SECONDS", 0)
    spoil = lambda step, loss: loss * torch.nan if step in (0, 3) else loss
    state, layer = small_state(None, 8)
    train(state, layer, 8, spoil)

    def stop(step, loss):
        if step == 5:
            raise Killed
        return spoil(step, loss)
    with pytest.raises(Killed):
        train(*small_state(tmp_path / "rft.state", 8), 8, stop)
    again, ours = small_state(tmp_path / "rft.state", 8)
    assert (again.step, again.skipped) == (5, 2)
    train(again, ours, 8, spoil)
    assert torch.equal(ours.weight, layer.weight) and again.schedule.get_last_lr() == state.schedule.get_last_lr()


# ---------------------------------------------------------------- progress bars

class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stderr: io.StringIO, steps: int, seconds: float = 0) -> str:
    """What a loop of so many steps, each with numbers to show, writes."""
    monkeypatch.setattr(sys, "stderr", stderr)
    state, _ = small_state(None, steps)
    for bar in state.steps(steps, "SFT"):
        bar.set_postfix(loss=f"{state.step}")
        time.sleep(seconds)
    return stderr.getvalue()


def test_a_bar_in_a_file_is_a_line_every_so_often(monkeypatch):
    lines = shown(monkeypatch, io.StringIO(), 3000).splitlines()
    assert len(lines) == 3 and "0/3000" in lines[0] and "3000/3000" in lines[1] and "loss=2999" in lines[1]
    monkeypatch.setattr(checkpoint, "LINE_SECONDS", .1)
    started = time.monotonic()
    text = shown(monkeypatch, io.StringIO(), 30, seconds=.02)
    lines, most = text.splitlines(), (time.monotonic() - started) / .1 + 3
    assert 4 < len(lines) <= most and "\r" not in text and all("loss=" in line for line in lines[1:-1])


def test_a_bar_in_a_terminal_is_redrawn_in_its_place(monkeypatch):
    text = shown(monkeypatch, Terminal(), 30, seconds=.02)
    assert text.count("\r") > 4 and text.count("\n") == 1 and "loss=" in text


# ---------------------------------------------------------------- faults of stage two

@pytest.fixture(scope="module")
def stage_two(whole):
    rng = np.random.default_rng(0)
    return whole, make_split(sample_poses(16, rng), rng), Retriever.from_pretrained(whole / "reward")


def run_stage_two(stage_two, steps: int = 3) -> tuple[list[dict], PosePolicy, dict]:
    whole, split, retriever = stage_two
    policy = load_policy(whole / "sft")
    before = {name: p.clone() for name, p in policy.named_parameters()}
    config = train_rft.RFTConfig(rft_steps=steps, prompts=3, group_size=2, poses_per_answer=2)
    return train_rft.train_rft(policy, split, retriever, config, 0, lambda policy: {}), policy, before


def replace_reward(monkeypatch, name: str, function) -> None:
    monkeypatch.setitem(rewards.REWARDS, name, rewards.REWARDS[name]._replace(function=function))


@pytest.mark.parametrize("place", ["reward of words", "reward of poses", "advantage", "loss", "gradient", "sampled pose"])
def test_what_is_not_finite_in_stage_two_skips_the_update(stage_two, monkeypatch, place):
    """Injected at one place, in every step: counted in every row, and no parameter moves."""
    if place == "reward of words":
        replace_reward(monkeypatch, "format", lambda c: [[float("nan")] * len(answers) for answers in c.answers])
    elif place == "reward of poses":
        monkeypatch.setattr(log, "broken", lambda *args: ["joint"])
    elif place == "advantage":
        whole_of = hygrpo.advantages
        monkeypatch.setattr(hygrpo, "advantages", lambda *a, **k: [x * torch.inf for x in whole_of(*a, **k)])
    elif place == "loss":
        loss_of = hygrpo.loss
        monkeypatch.setattr(hygrpo, "loss", lambda *a, **k: (loss_of(*a, **k)[0] * torch.nan, {}))
    elif place == "gradient":
        monkeypatch.setattr(log, "add_gradients", lambda parameters: parameters[0].grad.fill_(torch.inf) if
                            parameters[0].grad is not None else setattr(
                                parameters[0], "grad", torch.full_like(parameters[0], torch.nan)))
    else:
        sample = PosePolicy.sample

        def spoiled(self, *args, **kwargs):
            rollout = sample(self, *args, **kwargs)
            rollout.has_pose[:] = True
            return rollout._replace(pose=rollout.pose * torch.nan)
        monkeypatch.setattr(PosePolicy, "sample", spoiled)
    rows, policy, before = run_stage_two(stage_two)
    assert [row["skipped"] for row in rows[1:]] == [1, 2, 3]
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_a_reward_that_raises_names_itself_and_the_example(stage_two, monkeypatch):
    def raising(context):
        raise KeyError("no such form")
    replace_reward(monkeypatch, "format", raising)
    with pytest.raises(ValueError, match="the reward `format` failed on the .* example '.*' .*: KeyError: 'no such form'"):
        run_stage_two(stage_two)


def test_a_batch_without_a_pose_trains_the_words_alone(stage_two, monkeypatch):
    sample = PosePolicy.sample

    def no_pose(self, *args, **kwargs):
        rollout = sample(self, *args, **kwargs)
        rollout.has_pose[:] = False
        return rollout
    monkeypatch.setattr(PosePolicy, "sample", no_pose)
    rows, policy, before = run_stage_two(stage_two)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and not any(name.startswith("pose_head.") for name in changed)
    assert all(row["valid"] == 0 and "skipped" not in row for row in rows[1:])
