"""What the pages show of finished runs, made again: numbers and pictures in assets/, and tables in the pages.

    python -m lab.figures --runs runs_0 runs_1 runs_2 [--mocap mocap_0 mocap_1 mocap_2] [--long runs_long]
runs_0 ... and mocap_0 ... are runs of train_rft.py, with `python -m lab.continued_sft --run` after each; runs_0 is
drawn. A table of a page is found by its first line and replaced. Sentences with numbers are left as they are, and
tests/test_readme.py says which of them no longer agree. Claims, speed and the toy have commands of their own, which
docs/claims.md, docs/speed.md and toy.py name.
Read next: seeds.py and pictures.py, which it calls.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint import atomic_write
from engine.runtime import run
from engine.settings import read_settings
from lab import pictures, seeds
from lab.table import ROWS

ROOT = Path(__file__).parent.parent
BEGINS = f"| | {' | '.join(seeds.COLUMNS)} |"  # the table of several seeds
MOCAP, LONG = "| | motion capture: ", "| | ten times as long: "  # and those of other runs
DRAWN = ("before_after", "curves", "progression")  # of a long run: what train_rft.py has drawn
MARKS = (("*R@5 of the true poses*", ("text2pose", "judge_ceiling", "t2p_r5")),
         ("*R@5 of shuffled poses*", ("text2pose", "judge_floor", "t2p_r5")),
         ("*statements held by shuffled true poses*", ("text2pose", "statements_shuffled")),
         ("*questions: the commonest answer*", ("vqa_commonest",)))


def value(result: dict | None, keys: tuple):
    """What stands under the keys, one after the other; None where one of them is missing."""
    for key in keys:
        result = result.get(key) if result else None
    return result


def one_run(made: dict, begins: str) -> str:
    """Markdown: of one run's metrics.json what one has without looking (where it was measured), SFT and RFT."""
    stages = {"blind": "floors", "SFT": "sft", "RFT": "rft"}
    columns = {head: made[stage] for head, stage in stages.items() if stage in made}
    first, *others = columns
    lines = [f"{begins}{first} | {' | '.join(others)} |", "| --- |" + " --- |" * len(columns)]
    for title, keys in ROWS + MARKS:
        values = [value(column, keys) for column in columns.values()]
        known = [x for x in values if x is not None]
        if known:  # a measure that is newer than the run has no row
            digits = 1 if max(known) > 2 else 3
            lines.append(f"| {title} | " + " | ".join("-" if x is None else f"{x:.{digits}f}" for x in values) + " |")
    return "\n".join(lines)


def rows_shown(page: str) -> list[str]:
    """The rows of the table of several seeds that a page shows."""
    table = page.partition(f"{BEGINS}\n")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[1:]]


def put(page: str, begins: str, table: str) -> str:
    """The page with the table in the place of the one whose first line begins so. ValueError where there is not one."""
    made, found = re.subn(f"^{re.escape(begins)}.*\\n(\\|.*\\n?)*", lambda _: table + "\n", page, flags=re.MULTILINE)
    if found != 1:
        raise ValueError(f"a page should hold one table that begins with {begins!r}, and holds {found}")
    return made


def pages(assets: Path, texts: dict[str, str]) -> dict[str, str]:
    """README.md and docs/results.md (name -> text) with the tables of what lies in `assets`."""
    rows, mocap = (json.loads((assets / f"{name}.json").read_text())["rows"] for name in ("seeds", "seeds_mocap"))
    made = {name: put(text, BEGINS, seeds.table({title: rows[title] for title in rows_shown(text)}))
            for name, text in texts.items()}
    long = one_run(json.loads((assets / "metrics_long.json").read_text()), LONG)
    results = put(made["docs/results.md"], MOCAP, MOCAP + seeds.table(mocap).removeprefix("| | "))
    return made | {"docs/results.md": put(results, LONG, long)}


@dataclass
class FiguresConfig:
    runs: list[str] = field(metadata={"help": "finished runs of several seeds, each with its control"})
    mocap: list[str] = field(default_factory=list, metadata={"help": "the same on motion capture"})
    long: str | None = field(default=None, metadata={"help": "a finished run of ten times the length"})


def main() -> None:
    config, = read_settings(__doc__, FiguresConfig)
    assets = ROOT / "assets"
    needed = [Path(config.long) / name for name in ("metrics.json", *(f"{name}.png" for name in DRAWN)) if config.long]
    for file in needed:
        if not file.is_file():
            raise FileNotFoundError(f"{file.parent} holds no finished run (no {file.name}): python train_rft.py --out "
                                    f"{file.parent}")
    several = {name: folders for name, folders in (("", config.runs), ("_mocap", config.mocap)) if folders}
    reports = {name: seeds.report(folders) for name, folders in several.items()}  # all are read before one is written
    for name, folders in several.items():
        atomic_write(assets / f"seeds{name}.json", reports[name])
        shutil.copyfile(Path(folders[0]) / "metrics.json", assets / f"metrics{name}.json")
    if config.long:
        shutil.copyfile(Path(config.long) / "metrics.json", assets / "metrics_long.json")
    for name in DRAWN if config.long else ():
        shutil.copyfile(Path(config.long) / f"{name}.png", assets / f"{name}_long.png")
    texts = {name: (ROOT / name).read_text() for name in ("README.md", "docs/results.md")}
    for name, text in pages(assets, texts).items():
        atomic_write(ROOT / name, text)
    pictures.draw(Path(config.runs[0]), assets)  # last, since it takes a minute and what is above may find a fault
    print(f"{assets}, README.md and docs/results.md hold these runs; python -m pytest tests/test_readme.py says which "
          "sentences no longer agree")


if __name__ == "__main__":
    run(main)
