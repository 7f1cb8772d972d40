import sys
from functools import partialmethod
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.runtime import decide_threads
from forked import Forked
from model import PosePolicy

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
