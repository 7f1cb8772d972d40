"""One run at a time in a folder: the second is refused and harms nothing; a process that was killed leaves no lock."""

import errno
import signal
import sys
import time
from pathlib import Path

import pytest

from engine import lock
from engine.checkpoint import atomic_folder
from engine.lock import hold

def hold_and_write(folder: Path) -> None:
    with hold(folder), atomic_folder(folder / "sft") as partial:
        (partial / "half").write_text("of the first")
        print("held")
        time.sleep(600)


@pytest.fixture
def holder(fork, tmp_path):
    """Another process, in the middle of writing `runs`/sft."""
    other = fork(hold_and_write, tmp_path / "runs")
    other.wait_for_line("held")
    return other


@pytest.mark.parametrize("module, arguments", [("train_sft", []), ("train_rft", [])])
def test_the_same_command_twice_at_once_is_refused_and_leaves_the_first_alone(
        holder, monkeypatch, tmp_path, module, arguments):
    from importlib import import_module
    monkeypatch.setattr(sys, "argv", [f"{module}.py", "--out", str(tmp_path / "runs")])
    with pytest.raises(ValueError, match="another run is at work in .*runs: wait until it has ended, or name another"):
        import_module(module).main()
    assert (tmp_path / "runs" / "sft.partial" / "half").read_text() == "of the first"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["lock", "sft.partial"]  # no note either


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    holder.signal(signal.SIGKILL)
    assert holder.end()[0] == -signal.SIGKILL
    assert (tmp_path / "runs" / "lock").exists()
    with hold(tmp_path / "runs"):
        with pytest.raises(ValueError, match="another run is at work"), hold(tmp_path / "runs"):
            pass
        assert (tmp_path / "runs" / "lock").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sft.partial"]
    with hold(tmp_path / "runs"):
        pass


def test_a_folder_that_stays_empty_is_not_left(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "new"):
        1 / 0
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with hold(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists() and not list((tmp_path / "old").iterdir())


def test_a_lock_removed_by_its_holder_before_it_was_ours_is_taken_anew(monkeypatch, tmp_path):
    """Between our opening of the file and locking it, its holder ended and a third one came."""
    flock, removed = lock.fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.append((tmp_path / "lock").unlink())
            (tmp_path / "lock").write_text("")
        return flock(file, how)
    monkeypatch.setattr(lock.fcntl, "flock", late)
    with hold(tmp_path), pytest.raises(ValueError, match="another run"), hold(tmp_path):
        pass
    assert removed


@pytest.mark.parametrize("lacks", ["the module", "the file system"])
def test_where_nothing_can_be_locked_a_run_goes_on_and_says_so(monkeypatch, tmp_path, capsys, lacks):
    if lacks == "the module":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        def refuse(file, how):
            raise OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with hold(tmp_path / "runs"):
        (tmp_path / "runs" / "made").write_text("")
    assert "cannot be locked" in capsys.readouterr().out and (tmp_path / "runs" / "made").exists()


def test_of_several_processes_that_are_one_run_the_first_holds_the_folder(monkeypatch, tmp_path):
    with hold(tmp_path):
        monkeypatch.setattr(lock, "is_first", lambda: False)
        with hold(tmp_path):
            pass
        assert (tmp_path / "lock").exists()


def test_a_file_of_that_name_which_is_the_users_stays(tmp_path):
    (tmp_path / "lock").write_text("mine")
    with pytest.raises(ValueError, match="lock is in the way, since a run's own is empty"), hold(tmp_path):
        pytest.fail("it was held")
    assert (tmp_path / "lock").read_text() == "mine"
