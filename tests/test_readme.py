"""README and docs against what is there: numbers against the JSON that their commands wrote, links, names, flags.

About this project, not about the method: a fork whose numbers are others may delete this file."""

import ast
import json
import re
import statistics
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

import toy
from lab import against_trl, agreement, benchmark, claims_table, experiments, figures, readout, seeds

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = PAGES["README.md"]


def written(name: str) -> dict:
    return json.loads((ROOT / "assets" / name).read_text())


def prose(page: str) -> str:
    return " ".join(PAGES[page].split())


def arm(name: str, measure: str) -> float:
    """The mean over seeds."""
    values = written("claims.json")["arms"][name][measure]
    return sum(values) / len(values)


def brief(number: float, digits: int = 3) -> str:
    """A share as the pages write it in a sentence: .393."""
    return f"{number:.{digits}f}"[1:]


# ---------------------------------------------------------------- numbers

def test_the_tables_of_results_are_those_of_the_runs():
    texts = {name: PAGES[name] for name in ("README.md", "docs/results.md")}
    made = figures.pages(ROOT / "assets", texts)
    assert made == texts, "python -m lab.figures puts them right"
    seed_0, three = written("metrics.json"), written("seeds.json")
    of_run = seeds.collect([seed_0 | {"continued": seed_0["sft"]}])
    assert three["seeds"] == [0, 1, 2]
    assert all(three["rows"][title]["RFT"][0] == columns["RFT"][0] for title, columns in of_run.items())
    assert len(figures.rows_shown(README)) >= 5 and figures.rows_shown(PAGES["docs/results.md"]) == list(of_run)


def test_what_is_said_of_motion_capture_is_that_of_the_runs():
    made = written("seeds_mocap.json")
    rows, seed_0 = made["rows"], written("metrics_mocap.json")
    assert made["seeds"] == [0, 1, 2] and set(seeds.better_in(rows).values()) == {3}
    assert rows["questions: accuracy"]["RFT"][0] == seed_0["rft"]["vqa_accuracy"]
    ahead = lambda title, *names: sum(a > b for a, b in zip(*(rows[title][name] for name in names)))
    assert ahead("image to pose: MPJPE of the mean pose, mm", "RFT", "SFT continued") == 3
    assert ahead("questions: accuracy", "RFT", "blind") == 1 and ahead("text to pose: FID under the judge", "RFT", "SFT") < 3
    truth, shuffled = (seed_0["rft"]["text2pose"][mark]["t2p_r5"] for mark in ("judge_ceiling", "judge_floor"))
    assert f"true poses have R@5 {truth:.3f}, shuffled ones {shuffled:.3f}." in prose("docs/results.md")


def test_focal_advantages_and_credit_by_joint_are_as_measured_from_the_same_start():
    credit, rows, page = written("credit.json"), written("seeds.json")["rows"], PAGES["docs/results.md"]
    focal, plain, of_poses = {title: rows[title]["RFT"] for title in rows}, credit["by_joint"], credit["rows"]
    assert credit["seeds"] == written("seeds.json")["seeds"]
    for heading, before, after in (("Focal advantages", plain, focal), ("Credit by joint", of_poses, plain)):
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        shown = re.findall(r"^\| (\w[^|]+) \| [^|]+ \| [^|]+ \| in \d of 3 seeds \|$", section, re.M)
        assert len(shown) >= 5
        for title in shown:
            two, sign = (before[title], after[title]), -1 if "MPJPE" in title or "FID" in title else 1
            digits, better = 1 if max(two[0]) > 2 else 3, sum(sign * (b - a) > 0 for a, b in zip(*two))
            cells = [f"{statistics.mean(x):.{digits}f} ± {statistics.stdev(x):.{digits}f}" for x in two]
            assert f"| {title} | {' | '.join(cells)} | in {better} of 3 seeds |" in section, cells
    held = "text to pose: statements held, sampled pose"
    assert (f"`--credit pose` (one advantage a pose, as in the paper) {brief(statistics.mean(of_poses[held]))}, by "
            f"joints {brief(statistics.mean(plain[held]))}") in prose("docs/claims.md")


def test_what_another_number_of_threads_changes_is_as_measured():
    runs = [written(name)[stage] for name in ("metrics_two_threads.json", "metrics.json") for stage in ("sft", "rft")]
    for title, digits, keys in (("statements held, sampled pose", 3, ("text2pose", "statements_sampled")),
                                ("R@5 under the judge", 3, ("text2pose", "judge_r5")),
                                ("diversity, mm", 0, ("text2pose", "diversity_mm")),
                                ("MPJPE of the mean pose, mm", 1, ("image2pose", "mpjpe_mean")),
                                ("MPJPE of sampled poses, mm", 1, ("image2pose", "mpjpe_sampled")),
                                ("said beyond a blind guess", 3, ("description", "informed")),
                                ("questions", 3, ("vqa_accuracy",))):
        cells = [f"{figures.value(run, keys):.{digits}f}".removeprefix("0") for run in runs]
        assert f"| {title} | {' | '.join(cells)} |" in PAGES["docs/reproducibility.md"], cells


def test_claims_are_those_that_the_experiments_found():
    made = written("claims.json")
    claims, arms = {int(number): comparisons for number, comparisons in made["claims"].items()}, made["arms"]
    assert claims.keys() == experiments.CLAIMS.keys()
    assert all(c["seeds"] == 3 for comparisons in claims.values() for c in comparisons)
    for table in (claims_table.table(claims), claims_table.summary(claims), agreement.table(made["agreement"])):
        assert table in PAGES["docs/claims.md"]
    for number in experiments.SIDE_BY_SIDE:
        names = dict.fromkeys(arm for c in experiments.CLAIMS[number][1] for arm in c[:2])
        names |= dict.fromkeys(experiments.BESIDE.get(number, ()))
        assert claims_table.side_by_side({name: arms[name] for name in names}) in PAGES["docs/claims.md"]


def test_what_the_control_does_better_is_said():
    rows = written("seeds.json")["rows"]
    for title, sign in (("image to pose: MPJPE of the mean pose, mm", -1), ("questions: accuracy", 1),
                        ("text to pose: FID under the judge", -1), ("text to pose: diversity, mm", 1)):
        assert all(sign * (a - b) > 0 for a, b in zip(rows[title]["SFT continued"], rows[title]["RFT"])), title
    assert ("SFT continued is better than RFT in 3 of 3 in the mean pose of images, in questions, in FID and in diversity."
            in prose("docs/results.md"))
    error = {name: statistics.mean(x) for name, x in rows["image to pose: MPJPE of the mean pose, mm"].items()}
    gain = {name: f"{100 * (1 - error[name] / error['SFT']):.1f} %" for name in ("RFT", "SFT continued")}
    assert f"bring {gain['RFT']}. SFT continued for as long brings {gain['SFT continued']}" in prose("docs/claims.md")


def test_paraphrases_are_those_of_the_file():
    groups = written("paraphrases.json")["table"]
    short = lambda x: f"{x:.3f}".replace("0.", ".", 1)
    cell = lambda x, low, high: f"{short(x)} [{short(low)}, {short(high)}]"
    for name, title in (("tiny/sft", "tiny, SFT"), ("tiny/rft", "tiny, RFT"), ("pretrained/sft", "pre-trained, SFT"),
                        ("pretrained/rft", "pre-trained, RFT")):
        held = lambda group: cell(groups[group][name]["held"], *groups[group][name]["interval"])
        own = lambda group: cell(*(lambda x: (x["difference"], *x["interval"]))(groups[group][name]["own_minus_others"]))
        cells = [held("all paraphrases"), own("all paraphrases"), own("in other words"), own("scenes"),
                 held("test captions"), own("test captions")]
        assert f"| {title} | {' | '.join(cells)} |" in PAGES["docs/pretrained.md"], cells


def test_speed_is_that_of_the_benchmark():
    made = written("benchmark.json")
    report = benchmark.report(made["rows"], benchmark.BenchmarkConfig(**made["config"]))
    tables = [part for part in report.split("\n\n") if part.startswith("|")]
    assert tables and all(part in PAGES["docs/speed.md"] for part in tables)


@pytest.mark.parametrize("name", against_trl.TRIED)
def test_speed_against_others_is_as_measured(name):
    made = written(f"against_{name}.json")
    assert made["version"] == against_trl.TRIED[name] in PAGES["docs/speed.md"]
    table = benchmark.table(made["rows"], against_trl.columns(name))
    assert table in PAGES["docs/speed.md"] and (name != "trl" or table in README)


def test_what_a_linear_readout_finds_is_as_measured():
    assert readout.table(written("readout.json")["models"]) in PAGES["docs/pretrained.md"]


def test_a_full_size_model_is_as_measured():
    for row in written("fullsize.json")["rows"]:
        assert f"| {row['what']} | {row['peak_gb']:.1f} GB | {row['seconds']:.0f} s |" in PAGES["docs/going_real.md"]


def results_sentences() -> list[str]:
    short, long, mocap = (written(name) for name in ("metrics.json", "metrics_long.json", "metrics_mocap.json"))
    three, captured = (written(f"{name}.json")["rows"] for name in ("seeds", "seeds_mocap"))
    less = lambda name, rows=three: 100 * (1 - sum(rows[name]["RFT"]) / sum(rows[name]["SFT"]))
    of_mocap = lambda name, stage: statistics.mean(captured[name][stage])
    sampled, mean = (f"image to pose: MPJPE of {pose}, mm" for pose in ("sampled poses", "the mean pose"))
    asked, fid = "questions: accuracy", "text to pose: FID under the judge"
    better = seeds.better_in(three)
    (sft, sft_seen), (rft, rft_seen) = ((long[s]["text2pose"], long[s]["image2pose"]) for s in ("sft", "rft"))
    ahead = lambda stage: 100 * (short[stage]["vqa_accuracy"] - short[stage]["vqa_commonest"])
    ceiling = lambda run: run["rft"]["text2pose"]["judge_ceiling"]["t2p_r5"]
    wide = written("uncertainty.json")
    cm = lambda asked, group: f"{wide[asked][group]['std_cm']:.1f} cm"
    kept, bare = (written("stability.json")[name] for name in ("hygrpo", "no KL, no floor"))
    curve = lambda run, name: [y for _, y in run["curves"][name]]
    held, lost = curve(kept, "val_statements_sampled"), curve(bare, "val_statements_sampled")
    judge, error, worse = curve(kept, "val_judge_r5"), curve(kept, "val_mpjpe_mean"), curve(bare, "val_mpjpe_mean")
    return [
        f"(MPJPE {sft_seen['mpjpe_mean']:.0f} mm)",
        f"in {better['statements held, sampled pose']} of 3 seeds in statements, in {better['R@5 under the judge']} in "
        f"R@5, and in {better['MPJPE of sampled poses, mm']} in the error of sampled poses",
        f"errs by {short['floors']['probe']['mpjpe_mean']:.1f} mm on seed 0; the policy's mean pose by "
        f"{short['sft']['image2pose']['mpjpe_mean']:.1f} mm after SFT and "
        f"{short['rft']['image2pose']['mpjpe_mean']:.1f} mm after RFT",
        f"training poses is {short['floors']['fid_true']:.3f}, and true poses reach R@5 {ceiling(short):.3f}.",
        f"holds {brief(rft['statements_sampled'], 2)} of the statements where it held "
        f"{brief(sft['statements_sampled'], 2)}, its error falls from {sft_seen['mpjpe_sampled']:.0f} to "
        f"{rft_seen['mpjpe_sampled']:.0f} mm, that of the mean pose by "
        f"{sft_seen['mpjpe_mean'] - rft_seen['mpjpe_mean']:.1f} mm",
        f"passes that of the true poses ({brief(rft['judge_r5'], 2)} against {brief(ceiling(long), 2)})",
        f"sampled poses falls by {less(sampled):.0f} %, that of the mean pose by {less(mean):.1f} % (on motion capture by "
        f"{less(sampled, captured):.0f} % and {less(mean, captured):.1f} %)",
        f"from {of_mocap(fid, 'SFT'):.3f} to {of_mocap(fid, 'RFT'):.3f}",
        f"{brief(of_mocap(asked, 'RFT'))} by the policy, {brief(of_mocap(asked, 'blind'))} by the commonest answer",
        f"answered {ahead('sft'):.0f} points (RFT {ahead('rft'):.0f}) better",
        f"true poses reach R@5 {ceiling(short):.3f}, on motion capture of unseen subjects {ceiling(mocap):.3f}.",
        f"A hidden hand has {cm('images', 'hand, hidden: under 1/3 seen')}, one in view "
        f"{cm('images', 'hand, in view: over 2/3')}.",
        f"says nothing of a hand, it has {cm('sentences', 'hand, says nothing of it')}, where it speaks of it "
        f"{cm('sentences', 'hand, speaks of it')}.",
        f"rank correlation of {wide['images']['rank_correlation']:.2f} for images and "
        f"{wide['sentences']['rank_correlation']:.2f} for sentences",
        f"statements held {held[0]:.3f} before, {held[-1]:.3f} at the end, never more than {kept['lost']:.3f} below the "
        "best before",
        f"The judge's R@5 rises from {judge[0]:.2f} to {judge[-1]:.2f}, the mean pose's error falls from {error[0]:.0f} "
        f"to {error[-1]:.0f} mm (after a rise to {max(error):.0f} mm at step {150 * error.index(max(error))}), and "
        f"diversity settles at {curve(kept, 'val_diversity_mm')[-1]:.0f} mm.",
        f"first rise faster ({max(lost):.3f} at best)",
        "the spread collapses ({:.0f} to {:.0f} mm)".format(
            *(curve(bare, "val_diversity_mm")[i] for i in (0, -1))),
        "the mean pose's error rises from {:.0f} to {:.0f} mm".format(worse[0], max(worse)),
        f"Statements end at {lost[-1]:.3f}, the judge at {curve(bare, 'val_judge_r5')[-1]:.2f}"]


def claims_sentences() -> list[str]:
    told, found, wide, sampled = "statements", "judge R@5", "diversity, mm", "MPJPE sampled, mm"
    rewarding, batch = "reward model's R@5", "divided by batch"
    share = lambda name, measure=told: brief(arm(name, measure))
    length = lambda name, measure=sampled: f"{arm(name, measure):.1f}"
    whole = lambda name, measure: f"{arm(name, measure):.0f}"
    epochs = [f"4 epochs, {ratio}" for ratio in ("joint", "per_joint", "mean")]
    fixed, blind, mm, mean = "deterministic", "no pose encoder", "MPJPE, mm", "statements, mean pose"
    return [
        f"errs by {length(fixed, mm)} mm after imitation, and that of sentences holds {share(fixed, mean)} of the "
        f"statements; with a Gaussian {length('sft', mm)} mm and {share('sft', mean)}.",
        f"({whole(fixed, wide)} mm), so that they err by {length(fixed)} mm, less than HyGRPO's ({length('hygrpo')}), and the "
        f"judge finds them more often than those of the Gaussian before reinforcement (R@5 {share(fixed, found)} and "
        f"{share('sft', found)}).",
        f"leaves {length(f'{fixed}, GRPO', mm)} mm and {share(f'{fixed}, GRPO', mean)}, HyGRPO makes "
        f"{length('hygrpo', mm)} mm, {share('hygrpo', mean)} and R@5 {share('hygrpo', found)} of the Gaussian.",
        f"errs by {length(blind, mm)} mm after imitation and {length(f'{blind}, hygrpo', mm)} mm after HyGRPO.",
        f"comes to {share(f'{blind}, hygrpo')} of the statements instead of {share('hygrpo')}.",
        f"the paper's joint ratio holds {share(epochs[0])} of the statements, the ratio of each joint {share(epochs[1])}, the "
        f"mean ratio {share(epochs[2])}; one update, the default, {share('hygrpo')}.",
        f"Sampled poses err by {length(epochs[0])}, {length(epochs[1])} and {length(epochs[2])} mm ({length('hygrpo')} with one "
        f"update), the mean pose by {length(epochs[0], mm)}, {length(epochs[1], mm)} and {length(epochs[2], mm)} mm",
        f"one pose an answer holds {share('K = 1')} of the statements, eight {share('K = 8')} and 64 {share('G = 3')}; "
        f"sampled poses err by {length('K = 1')}, {length('K = 8')} and {length('G = 3')} mm.",
        f"teach less: {share('hygrpo')} with one, {share('G = 2')}, {share('G = 3')} and {share('G = 6')} with two, three "
        f"and six.",
        f"do gain by it: {share('G = 6', 'descriptions')} with six answers, {share('G = 2', 'descriptions')} with two",
        f"descriptions {share('without text', 'descriptions')} without it, {share('hygrpo', 'descriptions')} with it",
        f"already answers in form ({100 * arm('sft', 'form'):.0f} %), and the KL of the words keeps it there: "
        f"{share('without format', 'form')} without the reward, {share('hygrpo', 'form')} with it.",
        f"the model that rewards rises from {share('hygrpo', rewarding)} to {share('KL 0.0', rewarding)}, that of the judge "
        f"from {share('hygrpo', found)} to {share('KL 0.0', found)}.",
        f"diversity, {whole('KL 0.0', wide)} mm instead of {whole('hygrpo', wide)} (SFT: {whole('sft', wide)}).",
        f"`--beta_pose 0.02` gives {share('KL 0.02')} of the statements at {whole('KL 0.02', wide)} mm",
        f"as many statements hold ({share(batch)} and {share('hygrpo')}), but the mean pose of images errs by "
        f"{length(batch, mm)} instead of {length('hygrpo', mm)} mm, and sampled poses by {length(batch)} "
        f"instead of {length('hygrpo')} mm. Not divided, {share('divided by none')} of the statements hold.",
        f"{share('sigma frozen')} hold, and sampled poses err by {length('sigma frozen')} mm."]


def new_claims_sentences() -> list[str]:
    told, found, mm, sampled, asked = "statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm", "questions"
    share = lambda name, measure: brief(arm(name, measure))
    length = lambda name, measure: f"{arm(name, measure):.1f}"
    sft, longer, fifty, one = "sft", "sft continued", "hygrpo, 50 steps", "hygrpo"
    arms = written("claims.json")["arms"]
    assert all(sign * (a - b) > 0 for measure, sign in ((told, 1), (found, 1), (sampled, -1))
               for a, b in zip(arms[fifty][measure], arms[longer][measure]))  # past it in every seed
    score, slope, both = "the paper's", "the paper's, pathwise", "hygrpo, pathwise"
    return [
        f"brings statements from {share(sft, told)} to {share(longer, told)}, R@5 from {share(sft, found)} to "
        f"{share(longer, found)} and the error of sampled poses from {length(sft, sampled)} to {length(longer, sampled)} "
        f"mm, by {arm(longer, 'prompts'):,.0f} prompts in {arm(longer, 'seconds'):.0f} s.",
        f"by {arm(fifty, 'prompts'):,.0f} prompts in {arm(fifty, 'seconds'):.0f} s: {share(fifty, told)}, "
        f"{share(fifty, found)} and {length(fifty, sampled)} mm.",
        f"({length(longer, mm)} mm against {length(one, mm)} mm after 450 steps; {share(longer, asked)} against "
        f"{share(one, asked)})",
        f"Pathwise holds {share(slope, told)} of the statements, HyGRPO {share(score, told)}; the mean pose of images "
        f"errs by {length(slope, mm)} and {length(score, mm)} mm, sampled poses by {length(slope, sampled)} and "
        f"{length(score, sampled)} mm.",
        f"pathwise comes to {share(f'{score}, K = 1, pathwise', told)}, in "
        f"{arm(f'{score}, K = 1, pathwise', 'seconds'):.0f} s instead of {arm(score, 'seconds'):.0f} s; HyGRPO to "
        f"{share(f'{score}, K = 1', told)}, which is not above SFT ({share(sft, told)})",
        f"{length(f'{score}, K = 1', sampled)} instead of {length(f'{score}, K = 1, pathwise', sampled)} mm",
        f"a mean pose that errs by {length(f'{score}, K = 1, pathwise', mm)} mm, where K = 64 has {length(score, mm)} by "
        f"HyGRPO, and diversity of {arm(f'{score}, K = 1, pathwise', 'diversity, mm'):.0f} instead of "
        f"{arm(score, 'diversity, mm'):.0f} mm.",
        f"{share(one, told)} of them hold and R@5 is {share(one, found)}; without it, pathwise, {share(slope, told)} and "
        f"{share(slope, found)}. `statements` alone comes to {share('statements alone', told)}",
        f"errs by {length('statements alone', mm)} mm instead of {length(sft, mm)} after SFT",
        f"(statements {share(both, told)}, R@5 {share(both, found)}) and the same at equal time "
        f"({share(f'{both}, equal time', told)}, {share(f'{both}, equal time', found)}), with errors of sampled poses that "
        f"are {arm(both, sampled) - arm(one, sampled):.1f} mm larger, at equal time "
        f"{arm(f'{both}, equal time', sampled) - arm(one, sampled):.1f} mm."]


def weights_sentences() -> list[str]:
    told, found, mm, sampled, wide = "statements", "judge R@5", "MPJPE, mm", "MPJPE sampled, mm", "diversity, mm"
    share = lambda name, measure: brief(arm(name, measure))
    length = lambda name, measure=sampled: f"{arm(name, measure):.1f}"
    whole = lambda name: f"{arm(name, wide):.0f}"
    three = lambda write, name, *measure: "{}, {} and {}".format(
        *(write(which, *measure) for which in (f"{name} x 0.25", "hygrpo", f"{name} x 4")))
    arms = written("claims.json")["arms"]
    as_it_is = [arm(name, "descriptions") for name in arms if " x " in name and not name.startswith("description")]
    seconds = [arm(name, "seconds") for name in arms if " x " in name or name == "rewards summed"]
    poses = ("joint", "semantic", "statements")
    cosine = lambda part, a, b: statistics.mean(one[part][a][b] for one in written("claims.json")["agreement"])
    between = lambda values: f"{brief(min(values), 2)} to {brief(max(values), 2)}"
    agree = lambda part: between([cosine(part, a, b) for i, a in enumerate(poses) for b in poses[:i]])
    itself = lambda part: between([cosine(part, a, a) for a in poses])
    correlated = lambda write, *measure: [write(name, *measure) for name in ("lowrank", "full", "sft")]
    after = lambda write, *measure: [write(name, *measure) for name in ("lowrank, hygrpo", "full, hygrpo", "hygrpo")]
    return [
        f"their seconds, from {min(seconds):.0f} to {max(seconds):.0f}, differ by what ran beside them.",
        f"`joint`, sampled poses err by {three(length, 'joint')} mm; `semantic`, the judge's R@5 is "
        f"{three(share, 'semantic', found)}; `statements`, {three(share, 'statements', told)} hold.",
        f"takes the statements from {share('hygrpo', told)} to {share('joint x 4', told)}, four times `statements` the error "
        f"of the mean pose from {length('hygrpo', mm)} to {length('statements x 4', mm)} mm.",
        f"{whole('statements x 4')} and {whole('semantic x 4')} mm with four times `statements` and `semantic`, instead of "
        f"{whole('hygrpo')} mm.",
        f"Descriptions are {three(share, 'description', 'descriptions')} with ever more weight",
        f"(from {brief(min(as_it_is))} to {brief(max(as_it_is))}). Questions are {three(share, 'correct', 'questions')} with "
        f"that of `correct`, the form is {three(share, 'format', 'form')} with that of `format`.",
        f"{share('rewards summed', told)} of the statements hold, not {share('hygrpo', told)}, R@5 is "
        f"{share('rewards summed', found)}, not {share('hygrpo', found)}, and sampled poses err by "
        f"{length('rewards summed')} mm, not {length('hygrpo')}.",
        f"agree by {agree('language model')}, where {itself('language model')} is the most; on the pose head by "
        f"{agree('pose head')}, where {itself('pose head')} is the most.",
        "errs by {} (`lowrank`) and {} mm (`full`) against {}".format(*correlated(length, mm)),
        "samples that hold {} and {} of the statements against {}.".format(*correlated(share, told)),
        "HyGRPO brings these to {} and {} (diagonal: {})".format(*after(share, told)),
        "sampled poses err by {} and {} mm ({}).".format(*after(length))]


def discrete_sentences() -> list[str]:
    share = lambda name, measure: brief(arm(name, measure))
    length = lambda name: f"{arm(name, 'MPJPE sampled, mm'):.1f}"
    seconds = lambda name: f"{arm(name, 'seconds'):.0f}"
    coded = lambda measure: statistics.mean(x[measure] for x in written("claims.json")["quantisation"])
    told, found, arms = "statements", "judge R@5", written("claims.json")["arms"]
    like_poses, like_words = (f"discrete, GRPO{how}, equal time" for how in ("", " as words"))
    assert all(a < b for name in (like_poses, like_words)
               for a, b in zip(arms["hygrpo"]["diversity, mm"], arms[name]["diversity, mm"]))
    return [
        f"they took {seconds(like_poses)} and {seconds(like_words)} s",
        f"read back err by {coded('MPJPE, mm'):.0f} mm and hold {brief(coded('statements'), 2)} of the statements",
        f"statements {share('discrete', told)} where the Gaussian has {share('sft', told)}, R@5 {share('discrete', found)} "
        f"and {share('sft', found)}, sampled poses err by {length('discrete')} and {length('sft')} mm.",
        f"GRPO on these words comes to {share(like_poses, told)} and {length(like_poses)} mm, *as words* to "
        f"{share(like_words, told)} and {length(like_words)} mm, HyGRPO to {share('hygrpo', told)} and "
        f"{length('hygrpo')} mm.",
        f"in {seconds('discrete, GRPO')} s, GRPO on words comes to {share('discrete, GRPO', told)} and "
        f"{length('discrete, GRPO')} mm"]


def readme_sentences() -> list[str]:
    long = written("metrics_long.json")["rft"]
    told, slope = lambda name: brief(arm(name, "statements"), 2), "the paper's, pathwise"
    truth = written("metrics.json")["rft"]["text2pose"]["judge_ceiling"]["t2p_r5"]
    return [f"needs HyGRPO: with a reward of statements {told('hygrpo')} of them hold, without it {told(slope)}",
            f"True poses have R@5 {brief(truth, 2)} (seed 0)",
            f"one seed: statements {brief(long['text2pose']['statements_sampled'])}, MPJPE "
            f"{long['image2pose']['mpjpe_mean']:.1f} mm, of sampled poses {long['image2pose']['mpjpe_sampled']:.1f} mm"]


def variants_sentences() -> list[str]:
    told, wide = "statements", "diversity, mm"
    three = [f"4 epochs, {ratio}" for ratio in ("joint", "per_joint", "mean")]
    listed = lambda write, names, *more: ", ".join(write(arm(name, *more)) for name in names)
    whole = "{:.0f}".format
    correlated = [f"{kind}, hygrpo" for kind in ("lowrank", "full")]
    today = lambda name, measure=told: arm(name, measure)
    without = "the paper's"  # as claim 11 names it
    return [
        f"has statements {brief(today('hygrpo'))}, MPJPE of sampled poses {today('hygrpo', 'MPJPE sampled, mm'):.0f} mm, "
        f"diversity {today('hygrpo', wide):.0f} mm; SFT: {brief(today('sft'))}, "
        f"{today('sft', 'MPJPE sampled, mm'):.0f} mm, {today('sft', wide):.0f} mm.",
        f"`--poses_per_answer 1 --pose_answers 3 --pose_prompts 16` | statements {brief(today('K = 1'))}; "
        f"{brief(today('G = 3'))} with 64 |",
        f"`--group_size 6 --pose_answers 6 --pose_prompts 8` | statements {brief(today('G = 6'))} against "
        f"{brief(today('G = 2'))} with 2",
        f"`--beta_pose 0` | judge's R@5 {brief(today('KL 0.0', 'judge R@5'))} instead of "
        f"{brief(today('hygrpo', 'judge R@5'))}, diversity {today('KL 0.0', wide):.0f} mm",
        f"`--without statements` | statements {brief(today(without))},",
        f"`--sigma frozen` | statements {brief(today('sigma frozen'))}, MPJPE of sampled poses "
        f"{today('sigma frozen', 'MPJPE sampled, mm'):.0f} mm",
        f"`--normalize none` | statements {brief(today('divided by none'))}, diversity "
        f"{today('divided by none', wide):.0f} mm",
        f"`--pose_weight 0` | poses stay as they were: {brief(today('GRPO on words'))}",
        f"statements {listed(brief, three, told)}; diversity {listed(whole, three, wide)} mm |",
        f"MPJPE of the mean pose {today('no pose encoder, hygrpo', 'MPJPE, mm'):.0f} instead of "
        f"{today('hygrpo', 'MPJPE, mm'):.0f} mm",
        f"statements {listed(brief, correlated, told)}; diversity {listed(whole, correlated, wide)} mm"]


def soak_sentences() -> list[str]:
    soak = written("soak.json")
    assert soak["steps"] == 1000 and soak["growth"] < 0.02
    return [f"memory {soak['growth']:+.1%} from step 100 to 1,000 ({soak['mb'][0]:.0f} to {soak['mb'][-1]:.0f} MB)",
            f"{soak['slower']:+.1%} to one of the first ({1000 * soak['seconds'][0]:.0f} ms)",
            f"{soak['bytes_a_step']:.0f} bytes logged a step"]


@pytest.mark.parametrize("page, sentences", [
    ("docs/results.md", results_sentences), ("docs/claims.md", claims_sentences),
    ("docs/claims.md", new_claims_sentences), ("docs/claims.md", weights_sentences),
    ("docs/claims.md", discrete_sentences), ("docs/claims.md", variants_sentences),
    ("README.md", readme_sentences),
    ("docs/speed.md", soak_sentences)])
def test_numbers_in_sentences_are_as_measured(page, sentences):
    missing = [sentence for sentence in sentences() if sentence not in prose(page)]
    assert not missing, f"{page} should say\n" + "\n".join(missing)


# ---------------------------------------------------------------- links, names, flags, size

def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    for link in links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_the_readme_leads_to_every_page():
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in README
            and f"({page}#" not in README] == []


def test_functions_and_tests_that_are_named_with_their_file_exist():
    named = [(page, *found) for page, text in PAGES.items()
             for found in re.findall(r"`([\w.]+)`(?: and\s+`[\w.]+`)?\s+in\s+\[[\w./]+\]\(([\w./]+\.py)\)", text)]
    assert len(named) >= 10
    for page, path, file in named:
        source = ((ROOT / page).parent / file).read_text()
        assert re.search(rf"(def|class) {path.split('.')[-1]}\b|^{path} = ", source, re.MULTILINE), path


def test_python_in_the_pages_imports_what_is_there():
    blocks = [block for text in PAGES.values() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    assert blocks
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), ast.unparse(node)


def toy_flags() -> set[str]:
    """toy.py imports nothing of the project but hygrpo.py, so that its flags are not the fields of a dataclass."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit), redirect_stdout(StringIO()) as printed:
        patch.setattr("sys.argv", ["toy.py", "--help"])
        toy.main()
    return set(re.findall(r"--(\w+)", printed.getvalue()))


def test_flags_that_are_named_exist():
    fields = {node.target.id for path in ROOT.glob("**/*.py") if not path.is_relative_to(ROOT / "tests")
              for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)} | toy_flags()
    for page, text in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--(\w+)", text)) - {"help", "nproc_per_node", "index", "no"}  # the last two: pip
        assert named <= fields, (page, named - fields)


def test_the_readme_is_short_and_comes_to_the_algorithm_on_the_second_screen():
    assert len(README.splitlines()) <= 220 and len(README.encode()) <= 14 * 1024
    assert README[:README.index("## The algorithm")].count("\n") < 60
