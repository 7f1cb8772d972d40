import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.runtime import decide_threads

decide_threads()  # before any test, so that the tests round as every script does, in whatever order they run
