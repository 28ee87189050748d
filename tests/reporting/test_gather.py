from __future__ import annotations

import json
import math
import os
import statistics
from pathlib import Path

import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from invented import Study, right
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from trialign.diverged import write
from trialign.errors import UserError
from trialign.recipes import Column
from trialign.reporting.gather import NO_SCORE, Measurements, Value, mean, missing

ARC = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
MMLU = Column(label="MMLU", benchmark="mmlu", metric="acc", scale=100, aggregate="subsets")
LINEAGE = "mistral+tpo@alpha=0.9@beta=0.2"


def test_accuracy_is_a_percentage_with_the_binomial_standard_error(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 708, 1172))
    value = Measurements("table1", study.folders).value(ARC, LINEAGE, [1])
    p = 708 / 1172
    assert value.value == pytest.approx(100 * p, rel=1e-12)
    assert value.stderr == pytest.approx(100 * math.sqrt(p * (1 - p) / 1171), rel=1e-12)
    assert value.n == 1172


def test_scores_are_the_mean_with_the_sample_standard_error(study: Study) -> None:
    scores = [8.0, 7.0, 9.5, 1.0, 6.0, 10.0, 3.0]
    study.suite(
        LINEAGE, [("mtbench", "math", f"{i}/1", "score", s) for i, s in enumerate(scores)], suite="mtbench/rubric"
    )
    column = Column(label="MT-Bench", benchmark="mtbench", metric="score")
    value = Measurements("table2", study.folders).value(column, LINEAGE, [1])
    assert value.value == pytest.approx(statistics.fmean(scores), rel=1e-12)
    assert value.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(7), rel=1e-12)


def test_the_two_turns_of_a_question_hang_together(study: Study) -> None:
    """Turns that always agree say no more than one of them: sd over questions / sqrt(questions)."""
    scores = [8.0, 7.0, 9.5, 1.0, 6.0]
    records = [("mtbench", "math", f"{i}/{turn}", "score", s) for i, s in enumerate(scores) for turn in (1, 2)]
    study.suite(LINEAGE, records, suite="mtbench/rubric")
    column = Column(label="MT-Bench", benchmark="mtbench", metric="score")
    value = Measurements("table2", study.folders).value(column, LINEAGE, [1])
    assert value.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(5), rel=1e-12)
    assert value.n == 10


def test_subsets_count_alike_whatever_their_sizes(study: Study) -> None:
    study.suite(LINEAGE, right("mmlu", "acc", 1, 2, "law") + right("mmlu", "acc", 2, 8, "physics"))
    value = Measurements("table1", study.folders).value(MMLU, LINEAGE, [1])
    assert value.value == pytest.approx(100 * (1 / 2 + 2 / 8) / 2)  # the items' own mean would be 30
    law, physics = 0.5 * 0.5 / 1, 0.25 * 0.75 / 7  # squared standard errors
    assert value.stderr == pytest.approx(100 * math.sqrt(law + physics) / 2)
    assert value.n == 10


def test_an_average_is_the_mean_of_its_members_cells(study: Study) -> None:
    study.suite(
        LINEAGE, right("arc", "acc_norm", 3, 4) + right("mmlu", "acc", 1, 2, "a") + right("mmlu", "acc", 2, 8, "b")
    )
    measured = Measurements("table1", study.folders)
    arc, mmlu = measured.value(ARC, LINEAGE, [1]), measured.value(MMLU, LINEAGE, [1])
    average = measured.value(Column(label="Average", mean_of=(ARC, MMLU)), LINEAGE, [1])
    assert average.value == pytest.approx((75 + 37.5) / 2)
    assert average.stderr == pytest.approx(math.hypot(arc.stderr, mmlu.stderr) / 2)
    assert average.n == 4 + 10


def test_seeds_are_averaged_and_their_scatter_is_in_the_error(study: Study) -> None:
    """The variance of the mean of crossed items and seeds, from the mean squares of their analysis of variance."""
    rows = {1: [1, 1, 1, 1, 0, 0], 2: [1, 1, 0, 1, 0, 0], 3: [1, 0, 0, 0, 0, 0]}
    for seed, answers in rows.items():
        study.suite(LINEAGE, [("arc", "", str(i), "acc_norm", float(x)) for i, x in enumerate(answers)], seed=seed)
    value = Measurements("table1", study.folders).value(ARC, LINEAGE, [1, 2, 3])
    long = pd.DataFrame(rows).melt(ignore_index=False, var_name="seed", value_name="y").reset_index(names="item")
    squares = anova_lm(ols("y ~ C(item) + C(seed)", long).fit())["mean_sq"]
    ms_items, ms_seeds, ms_rest = squares["C(item)"], squares["C(seed)"], squares["Residual"]
    assert ms_seeds > ms_rest
    assert value.value == pytest.approx(100 * 8 / 18)
    assert value.stderr == pytest.approx(100 * math.sqrt((ms_items + ms_seeds - ms_rest) / 18))
    assert value.n == 18


numbers = st.floats(-1e3, 1e3)
values = st.builds(Value, numbers, st.floats(0, 1e3), st.integers(1, 1000), st.just(""), st.floats(1, 1e6))


@given(st.lists(values, min_size=1, max_size=8))
def test_a_mean_of_equals_is_no_wider_than_its_widest_member(members: list[Value]) -> None:
    average = mean(members)
    assert min(v.value for v in members) - 1e-9 <= average.value <= max(v.value for v in members) + 1e-9
    assert average.stderr <= max(v.stderr for v in members) / math.sqrt(len(members)) + 1e-9


@pytest.mark.parametrize("k", [2, 3, 5])
def test_seeds_that_agree_do_not_narrow_the_error_of_their_common_items(study: Study, k: int) -> None:
    for seed in range(k):
        study.suite(LINEAGE, right("arc", "acc_norm", 30, 100), seed=seed)
    measured = Measurements("table1", study.folders)
    one, all_ = measured.value(ARC, LINEAGE, [0]), measured.value(ARC, LINEAGE, range(k))
    assert all_.stderr == pytest.approx(one.stderr)
    assert all_.n == k * one.n


def test_seeds_are_averaged_over_the_items_that_all_have(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 4, 10), seed=1)
    study.suite(LINEAGE, right("arc", "acc_norm", 4, 8), seed=2)
    value = Measurements("table1", study.folders).value(ARC, LINEAGE, [1, 2])
    assert (value.value, value.n) == (50, 16)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (708, 1172)])
def test_the_interval_of_an_accuracy_is_wilsons(study: Study, k: int, n: int) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", k, n))
    found = Measurements("table1", study.folders).value(ARC, LINEAGE, [1]).interval
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


@pytest.mark.parametrize(("right_ones", "questions"), [(0, 20), (3, 20), (20, 20)])
def test_of_questions_with_turns_all_alike_the_turns_tell_no_more_than_one(
    study: Study, right_ones: int, questions: int
) -> None:
    """Twice the items, each beside its like: the interval is that of the questions."""
    rows = [
        ("mtbench", "", f"{i}/{turn}", "polite", float(i < right_ones)) for i in range(questions) for turn in (1, 2)
    ]
    study.suite(LINEAGE, rows, suite="mtbench/rubric")
    column = Column(label="Polite", benchmark="mtbench", metric="polite")
    value = Measurements("judged", study.folders).value(column, LINEAGE, [1])
    expected = scipy.stats.binomtest(right_ones, questions).proportion_ci(method="wilson")
    assert value.n == 2 * questions
    assert value.interval == pytest.approx(tuple(expected), abs=1e-9)


def test_the_interval_of_scores_is_students(study: Study) -> None:
    scores = [8.0, 7.0, 9.5, 1.0, 6.0, 10.0, 3.0]
    study.suite(LINEAGE, [("mtbench", "", f"{i}/1", "score", s) for i, s in enumerate(scores)], suite="mtbench/rubric")
    column = Column(label="MT-Bench", benchmark="mtbench", metric="score")
    expected = scipy.stats.ttest_1samp(scores, 0).confidence_interval()
    found = Measurements("table2", study.folders).value(column, LINEAGE, [1]).interval
    assert found == pytest.approx((expected.low, expected.high))


def test_a_single_item_has_no_standard_error(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 1, 1))
    value = Measurements("table1", study.folders).value(ARC, LINEAGE, [1])
    assert value.value == 100
    assert math.isnan(value.stderr)


@pytest.mark.parametrize(
    ("lineage", "seed", "column"),
    [
        ("mistral+sft", 1, ARC),
        (LINEAGE, 2, ARC),
        (LINEAGE, 1, MMLU),
        (LINEAGE, 1, ARC.model_copy(update={"metric": "acc"})),
    ],
)
def test_a_cell_without_data_is_named(study: Study, lineage: str, seed: int, column: Column) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 3, 4))
    with pytest.raises(UserError) as error:
        Measurements("table1", study.folders).value(column, lineage, [seed])
    for part in ("table1", column.label, lineage, f"seed {seed}", f"{column.benchmark} ({column.metric})"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_member_of_an_average_is_named(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 3, 4))
    with pytest.raises(UserError, match=r"column 'MMLU'.* mmlu \(acc\)"):
        Measurements("table1", study.folders).value(Column(label="Average", mean_of=(ARC, MMLU)), LINEAGE, [1])


def test_one_diverged_seed_leaves_the_mean_without_a_score(study: Study) -> None:
    study.suite("mistral+sft", right("arc", "acc_norm", 10, 20), seed=1)
    write(study.suite("mistral+sft", [], seed=2), {"step": 7})
    measured = Measurements("table1", study.folders)
    column = Column(label="ARC", benchmark="arc", metric="acc_norm", scale=100)
    assert measured.value(column, "mistral+sft", (1,)).value == 50
    both = measured.value(column, "mistral+sft", (1, 2))
    assert not both.scored and both.n == 0
    assert not measured.value(Column(label="Average", mean_of=(column,)), "mistral+sft", (1, 2)).scored


def overlap(root: Path, name: str, seen: dict[tuple[str, str, str], bool]) -> Path:
    folder = root / "data" / "overlap" / name
    folder.mkdir(parents=True)
    rows = [(*place, train, False) for place, train in seen.items()]
    pd.DataFrame(rows, columns=["benchmark", "subset", "item", "train", "eval"]).to_parquet(folder / "items.parquet")
    return folder


def test_seen_and_unseen_items_apart(study: Study) -> None:
    """Ten items, the first six right; one data set holds items 0 and 7, another 0 and 8."""
    for lineage, k in ((LINEAGE, 6), ("mistral+sft", 8)):
        study.suite(lineage, right("arc", "acc_norm", k, 10))
    places = [("arc", "", str(i)) for i in range(10)]
    one = overlap(study.root, "one", {place: place[2] in "07" for place in places})
    other = overlap(study.root, "other", {place: place[2] in "08" for place in places})
    measured = Measurements("t", study.folders, [one, other])
    seen, unseen = (ARC.model_copy(update={"items": split}) for split in ("seen", "unseen"))
    assert measured.value(ARC, LINEAGE, [1]).value == pytest.approx(60)
    assert measured.value(seen, LINEAGE, [1]).numbers == pytest.approx((100 / 3, 100 * math.sqrt(2 / 9 / 2), 3))
    assert measured.value(unseen, LINEAGE, [1]).value == pytest.approx(100 * 5 / 7)
    assert measured.value(seen, "mistral+sft", [1]).value == pytest.approx(200 / 3)
    assert measured.value(unseen, "mistral+sft", [1]).n == 7
    assert measured.count("arc") == 10
    average = Column(label="Average", mean_of=(seen, unseen))
    assert measured.value(average, LINEAGE, [1]).value == pytest.approx(100 * (1 / 3 + 5 / 7) / 2)


def test_seen_items_are_told_apart_by_subset_and_both_turns_stay_together(study: Study) -> None:
    records = [("mmlu", subject, "0", "acc", value) for subject, value in (("law", 1.0), ("physics", 0.0))]
    study.suite(LINEAGE, records)
    turns = [("mtbench", "math", f"{q}/{t}", "score", 2.0 * q + t) for q in (1, 2) for t in (1, 2)]
    study.suite(LINEAGE, turns, suite="mtbench/rubric")
    flags = {("mmlu", "law", "0"): True, ("mmlu", "physics", "0"): False}
    flags |= {("mtbench", "math", f"{q}/{t}"): q == 2 for q in (1, 2) for t in (1, 2)}
    measured = Measurements("t", study.folders, [overlap(study.root, "one", flags)])
    score = Column(label="MT-Bench", benchmark="mtbench", metric="score", items="seen")
    assert measured.value(score, LINEAGE, [1]).value == pytest.approx((5 + 6) / 2)
    by_subject = MMLU.model_copy(update={"items": "seen"})
    assert (measured.value(by_subject, LINEAGE, [1]).value, measured.value(by_subject, LINEAGE, [1]).n) == (100, 1)


def test_where_no_item_was_seen_there_is_no_number(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 3, 4))
    nothing = overlap(study.root, "one", {("arc", "", str(i)): False for i in range(4)})
    measured = Measurements("t", study.folders, [nothing])
    seen = measured.value(ARC.model_copy(update={"items": "seen"}), LINEAGE, [1])
    assert not seen.scored and (seen.n, seen.missing) == (0, "no such item")
    assert measured.value(ARC.model_copy(update={"items": "unseen"}), LINEAGE, [1]).value == 75
    assert missing([seen, NO_SCORE, seen]) == "no such item or training diverged"


def test_an_item_that_nobody_searched_for_is_named(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 3, 4))
    other = overlap(study.root, "one", {("arc", "", str(i)): False for i in (0, 1, 3)})
    with pytest.raises(UserError, match=r"leaderboard: item '2' of arc is not among the items whose questions"):
        Measurements("t", study.folders, [other])


def test_values_that_are_no_numbers_are_refused(study: Study) -> None:
    study.suite(LINEAGE, [*right("arc", "acc_norm", 3, 4), ("arc", "", "x9", "acc_norm", math.nan)])
    with pytest.raises(UserError, match=r"1 values are not numbers.*x9"):
        Measurements("table1", study.folders)


def test_an_item_that_is_there_twice_is_refused(study: Study) -> None:
    study.suite(LINEAGE, right("arc", "acc_norm", 3, 4) + right("arc", "acc_norm", 1, 1))
    with pytest.raises(UserError, match=r"item '0' of arc, metric acc_norm, is there twice"):
        Measurements("table1", study.folders)


def test_two_judges_of_one_run_are_refused(study: Study) -> None:
    for judge in ("rubric", "gpt-4"):
        study.suite(LINEAGE, [("mtbench", "math", "1/1", "score", 5.0)], suite=f"mtbench/{judge}")
    with pytest.raises(UserError, match="two folders"):
        Measurements("table2", study.folders)


@pytest.mark.parametrize("key", ["model", "prompts", "served"])
def test_a_judge_that_changed_under_its_name_is_refused(study: Study, key: str) -> None:
    for seed, value in ((1, "one"), (2, "other")):
        folder = study.suite(LINEAGE, [("mtbench", "math", "1/1", "score", 5.0)], seed=seed, suite="mtbench/gpt-4")
        who = {"model": "m", "prompts": "p", "served": "s", key: value}
        (folder / "results.json").write_text(json.dumps({"judge": who}))
    with pytest.raises(UserError, match=rf"judge 'gpt-4' is not the same in .*\({key}: one and other\)"):
        Measurements("table2", study.folders)


def test_lineages_that_met_different_subsets_are_not_compared(study: Study) -> None:
    study.suite(LINEAGE, right("mmlu", "acc", 1, 2, "law") + right("mmlu", "acc", 1, 2, "physics"))
    study.suite("mistral+sft", right("mmlu", "acc", 1, 2, "law"))
    with pytest.raises(UserError, match=r"other subsets.*physics"):
        Measurements("table1", study.folders)


def test_a_suite_without_items_is_named(study: Study) -> None:
    folder = study.suite(LINEAGE, right("arc", "acc_norm", 3, 4))
    (folder / "items.parquet").unlink()
    with pytest.raises(UserError, match=r"items\.parquet is missing"):
        Measurements("table1", study.folders)


@pytest.mark.real
@pytest.mark.skipif("TRIALIGN_REAL_DATA" not in os.environ, reason="TRIALIGN_REAL_DATA is not set")
def test_real_harness_numbers_come_out_again(study: Study) -> None:
    """A real MMLU result states accuracy and standard error by subject: both must follow from the items they imply."""
    path = Path(os.environ["TRIALIGN_REAL_DATA"]) / "lm_eval_results" / "mmlu.json"
    results = json.loads(path.read_text())["results"]
    groups = {"mmlu", "mmlu_humanities", "mmlu_other", "mmlu_social_sciences", "mmlu_stem"}
    subjects = {name: (r["acc,none"], r["acc_stderr,none"]) for name, r in results.items() if name not in groups}
    assert len(subjects) == 57
    records = []
    for name, (p, stderr) in subjects.items():
        n = round(p * (1 - p) / stderr**2) + 1
        records += right("mmlu", "acc", round(p * n), n, name)
    study.suite(LINEAGE, records)
    measured = Measurements("table1", study.folders)
    whole = measured.value(MMLU, LINEAGE, [1])
    assert whole.n == 14042  # the size of MMLU's test split
    assert whole.value == pytest.approx(100 * statistics.fmean(p for p, _ in subjects.values()), abs=1e-9)
    assert whole.stderr == pytest.approx(100 * math.hypot(*(s for _, s in subjects.values())) / 57, abs=1e-9)
    weighted = MMLU.model_copy(update={"aggregate": "items"})
    assert measured.value(weighted, LINEAGE, [1]).value == pytest.approx(100 * results["mmlu"]["acc,none"], abs=1e-9)
