"""What the README says against what is there: its tables against the JSON their commands wrote, its links, its lines."""

import json
import re
from functools import reduce
from pathlib import Path

import pytest

import benchmark
import evaluate
import experiments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def written(name: str) -> dict:
    return json.loads((ROOT / "assets" / name).read_text())


def test_results_are_those_of_the_metrics():
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in README.splitlines() if line.startswith("| ")}
    runs = [written(f"metrics{name}.json")[stage] for name in ("", "_long", "_mocap") for stage in ("sft", "rft")]
    shown = list(evaluate.ROWS) + [
        ("*R@5 of the true poses*", ("text2pose", "judge_ceiling", "t2p_r5")),
        ("*R@5 of shuffled poses*", ("text2pose", "judge_floor", "t2p_r5")),
        ("*statements held by shuffled true poses*", ("text2pose", "statements_shuffled")),
        ("*questions: the commonest answer*", ("vqa_commonest",))]
    for title, keys in shown:
        values = []
        for run in runs:
            for key in keys:
                run = run[key]
            values.append(run)
        digits = 1 if max(values) > 2 else 3
        assert [cell.strip() for cell in rows[title]] == [f"{value:.{digits}f}" for value in values], title


def test_what_another_number_of_threads_changes_is_as_measured():
    runs = [written(name)[stage] for name in ("metrics.json", "metrics_one_thread.json") for stage in ("sft", "rft")]
    for title, digits, keys in (("statements held, sampled pose", 3, ("text2pose", "statements_sampled")),
                                ("R@5 under the judge", 3, ("text2pose", "judge_r5")),
                                ("diversity, mm", 0, ("text2pose", "diversity_mm")),
                                ("MPJPE of the mean pose, mm", 1, ("image2pose", "mpjpe_mean")),
                                ("MPJPE of sampled poses, mm", 1, ("image2pose", "mpjpe_sampled")),
                                ("descriptions", 3, ("description", "statements_held")),
                                ("questions", 3, ("vqa_accuracy",))):
        values = [reduce(dict.__getitem__, keys, run) for run in runs]
        cells = [f"{value:.{digits}f}".removeprefix("0") for value in values]
        assert f"| {title} | {' | '.join(cells)} |" in README, cells


def test_claims_are_those_that_the_experiments_found():
    found = written("claims.json")["claims"] | written("covariance.json")["claims"]
    claims = {int(number): comparisons for number, comparisons in found.items()}
    assert claims.keys() == experiments.CLAIMS.keys()
    assert all(c["seeds"] == 3 for comparisons in claims.values() for c in comparisons)
    assert experiments.table(claims) in README


def test_speed_is_that_of_the_benchmark():
    made = written("benchmark.json")
    report = benchmark.report(made["rows"], benchmark.BenchmarkConfig(**made["config"]))
    tables = [part for part in report.split("\n\n") if part.startswith("|")]
    assert tables and all(part in README for part in tables)


def test_a_full_size_model_and_a_long_run_are_as_measured():
    for row in written("fullsize.json")["rows"]:
        assert f"| {row['what']} | {row['peak_gb']:.1f} GB | {row['seconds']:.0f} s |" in README
    soak = written("soak.json")
    assert soak["steps"] == 1000 and soak["growth"] < 0.02
    text = " ".join(README.split())
    assert f"memory {soak['growth']:+.1%} from step 100 to 1,000 ({soak['mb'][0]:.0f} to {soak['mb'][-1]:.0f} MB)" in text
    assert f"{soak['slower']:+.1%} to one of the first ({1000 * soak['seconds'][0]:.0f} ms)" in text
    assert f"{soak['bytes_a_step']:.0f} bytes logged a step" in text


def test_uncertainty_is_as_measured():
    made, text = written("uncertainty.json"), " ".join(README.split())
    cm = lambda asked, group: f"{made[asked][group]['std_cm']:.1f} cm"
    assert (f"a hidden hand has {cm('images', 'hand, hidden: under 1/3 seen')}, one in view "
            f"{cm('images', 'hand, in view: over 2/3')}.") in text
    assert (f"says nothing of a hand ({cm('sentences', 'hand, says nothing of it')} against "
            f"{cm('sentences', 'hand, speaks of it')})") in text
    assert (f"rank correlation of {made['images']['rank_correlation']:.2f} for images and "
            f"{made['sentences']['rank_correlation']:.2f} for sentences") in text


def test_the_long_run_of_stage_two_is_as_measured():
    run, text = written("stability.json")["hygrpo"], " ".join(README.split())
    held = [share for _, share in run["curves"]["val_statements_sampled"]]
    assert (f"statements held {held[0]:.3f} before, {held[-1]:.3f} at the end, never more than {run['lost']:.3f} below "
            "the best before") in text and run["lost"] <= 0.03


def test_the_longer_chain_is_as_measured():
    made, text = written("metrics_long.json"), " ".join(README.split())
    (sft, sft_seen), (rft, rft_seen) = ((made[s]["text2pose"], made[s]["image2pose"]) for s in ("sft", "rft"))
    assert (f"53 minutes, from {sft['statements_sampled']:.2f} to {rft['statements_sampled']:.2f} and from "
            f"{sft['judge_r5']:.2f} to {rft['judge_r5']:.2f}.") in text
    assert (f"its error falls from {sft_seen['mpjpe_sampled']:.0f} to {rft_seen['mpjpe_sampled']:.0f} mm, that of the "
            f"mean pose by {sft_seen['mpjpe_mean'] - rft_seen['mpjpe_mean']:.1f} mm") in text


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 15
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link


@pytest.mark.parametrize("name, lines", re.findall(r"^\| \[(\w+\.py)\]\(\w+\.py\) \| (\d+) \|", README, re.MULTILINE))
def test_the_reading_order_counts_lines(name, lines):
    assert len((ROOT / name).read_text().splitlines()) == int(lines)


def test_functions_that_are_named_with_their_file_exist():
    named = re.findall(r"`([\w.]+)` in \[(\w+\.py)\]", README)
    assert len(named) >= 6
    for path, file in named:
        assert re.search(rf"(def|class) {path.split('.')[-1]}\b", (ROOT / file).read_text()), path
