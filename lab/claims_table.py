"""What came of the claims, as tables: one line a claim, below it each comparison, and every measure of every arm.

Read next: claims.py, which says what is compared; experiments.py, which runs it.
"""

import numpy as np

from lab.claims import CLAIMS, MEASURES, value


def compare(results: dict[str, list[dict]], arm: str, other: str, measure: str, relation: str) -> dict:
    """One comparison over seeds: means, spread, in how many seeds the first arm is the better one, and the verdict."""
    a, b = (np.array([value(r, measure) for r in results[name]]) for name in (arm, other))
    better = MEASURES[measure][2] * (a - b)
    spread = lambda x: float(x.std(ddof=1)) if len(x) > 1 else 0.0
    holds = bool((better > 0).all() if relation == ">" else abs(better.mean()) <= max(spread(a), spread(b)))
    return {"arm": arm, "other": other, "measure": measure, "relation": relation, "holds": holds,
            "mean": [float(a.mean()), float(b.mean())], "std": [spread(a), spread(b)],
            "better_in": int((better > 0).sum()), "seeds": len(a)}


def written(number: float, spread: float) -> str:
    digits = 1 if abs(number) >= 10 else 3
    return f"{number:.{digits}f} ± {spread:.{digits}f}"


def table(claims: dict[int, list[dict]]) -> str:
    """Markdown: under each claim a table with one comparison a row, mean ± std over seeds."""
    lines = []
    for number, comparisons in claims.items():
        holding = sum(c["holds"] for c in comparisons)
        lines += [f"**{number}. {CLAIMS[number][0]}.** {holding} of {len(comparisons)} comparisons hold "
                  f"(`--claims {number}`).", "", "| measure | first arm | | second arm | first is better | holds |",
                  "| --- | --- | --- | --- | --- | --- |"]
        lines += [f"| {c['measure']} | *{c['arm']}* {written(c['mean'][0], c['std'][0])} "
                  f"| {'like' if c['relation'] == '~' else 'better than'} "
                  f"| *{c['other']}* {written(c['mean'][1], c['std'][1])} | in {c['better_in']} of {c['seeds']} seeds "
                  f"| {'✓' if c['holds'] else '✗'} |" for c in comparisons]
        lines.append("")
    return "\n".join(lines[:-1])


def summary(claims: dict[int, list[dict]]) -> str:
    """Markdown: of each claim, in one line, its first comparison and how many of all hold."""
    lines = ["| claim | what is compared first | we see | holds |", "| --- | --- | --- | --- |"]
    for number, comparisons in claims.items():
        first, holding = comparisons[0], sum(c["holds"] for c in comparisons)
        verdict = "yes" if holding == len(comparisons) else "no" if not holding else "in part"
        seen = " against ".join(written(*x) for x in zip(first["mean"], first["std"]))
        lines.append(f"| {number}. {CLAIMS[number][0]} | {first['measure']}: *{first['arm']}*, *{first['other']}* "
                     f"| {seen} | {verdict}: {holding} of {len(comparisons)} |")
    return "\n".join(lines)


def side_by_side(arms: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: of each arm its steps, the prompts they took, seconds and every measure, mean ± std over seeds."""
    columns = ["steps", "prompts", "seconds", *MEASURES]
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for arm, numbers in arms.items():
        cells = [(np.mean(x), np.std(x, ddof=1) if len(x) > 1 else 0.0, 0 if name in columns[:3] else 1 if
                  max(x) > 2 else 3) for name in columns for x in [numbers[name]]]
        lines.append(f"| *{arm}* | " + " | ".join(f"{mean:.{d}f} ± {std:.{d}f}" for mean, std, d in cells) + " |")
    return "\n".join(lines)
