import sys
from functools import partialmethod
from pathlib import Path

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
set_hypothesis_home_dir(ROOT / ".pytest_cache" / "hypothesis")  # what it keeps of a run, beside what pytest keeps

from engine.runtime import decide_threads
from forked import Forked
from model import PosePolicy
from small_chain import chain  # a fixture

decide_threads()  # before any test, so that the tests round as every script does, in whatever order they run


@pytest.fixture
def short_answers(monkeypatch):
    """Answers of a policy that has learned nothing, which go on to the last token they may have, end after 16."""
    monkeypatch.setattr(PosePolicy, "sample", partialmethod(PosePolicy.sample, max_tokens=16))


@pytest.fixture
def fork(tmp_path_factory):
    """A function that starts `function(*arguments)` in a process of its own; none is left at the end of the test."""
    started = []

    def start(function, *arguments, **environment: str) -> Forked:
        started.append(Forked(tmp_path_factory.mktemp("process"), function, arguments, environment))
        return started[-1]
    yield start
    for one in started:
        one.process.kill()
        one.process.join()
