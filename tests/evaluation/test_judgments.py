"""Stored judgments read again, two judges compared: by the command line, on invented and real files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from evaluation_helpers import write_lines
from scipy import stats
from typer.testing import CliRunner

from trialign.cli import app
from trialign.errors import UserError
from trialign.evaluation import judgments

REAL = os.environ.get("TRIALIGN_REAL_DATA")
ANSWER = "[Question]\nq\n\n[The Start of Assistant's Answer]\n{}\n[The End of Assistant's Answer]"


def judgment(question, text, turn=1, model="m", judge="gpt-4", **more):
    prompt = "single-v1" if turn == 1 else "single-v1-multi-turn"
    return {
        "question_id": question, "model": model, "judge": [judge, prompt], "user_prompt": ANSWER.format("a"),
        "judgment": text, "score": -1, "turn": turn, "tstamp": 1.5, **more,
    }  # fmt: skip


def ran(*arguments):
    found = CliRunner().invoke(app, ["judge", *map(str, arguments)])
    return found.exit_code, found.stdout


def imported(*arguments):
    status, said = ran("import", *arguments, "--json")
    return status, json.loads(said)


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="judgments.jsonl"):
        write_lines(tmp_path / name, rows)
        return tmp_path / name

    return write


def test_every_kind_of_row_has_a_name_and_a_number(file):
    usable = [judgment(i, f"[[{i % 9 + 1}]]", score=i % 9 + 1) for i in range(1, 97)]
    path = file(
        *usable,
        judgment(1, "[[9]]", score=9),  # a rerun
        judgment(97, "$ERROR$"),
        judgment(98, "[[2]] or [[3]]", score=2),
        judgment(99, "[[11]]", score=11),
        judgment(100, "", user_prompt=ANSWER.format("")),
        judgment(2, "no rating here"),  # a rerun of one that had a rating
    )
    status, report = imported(path)
    (model,) = report["models"]
    assert status == 0 and report["rows"] == model["rows"] == 102
    assert model["statuses"] == {
        "ok": 96, "no_rating": 1, "conflicting": 1, "out_of_scale": 1, "error": 1, "empty_answer": 1, "rerun": 1,
    }  # fmt: skip
    assert (model["judgments"], model["reruns"], model["unjudged"]) == (100, 2, 4)
    ratings = [i % 9 + 1 for i in range(1, 97)]
    assert model["scores"]["strict"]["mean"] == pytest.approx(sum(ratings) / 96)
    assert model["scores"]["fastchat"]["mean"] == pytest.approx((sum(ratings) + 9 + 2 + 11) / 99)


def test_a_model_with_too_much_unjudged_has_no_score_and_the_others_have_theirs(file):
    path = file(
        *(judgment(i, "[[4]]", score=4) for i in (1, 2)), judgment(1, "?", model="n"), judgment(2, "[[5]]", model="n")
    )
    status, report = imported(path)
    good, bad = report["models"]
    assert status == 1 and good["scores"] and bad["scores"] is None
    assert "1 of 2 judgments have no usable rating (no_rating: 1)" in bad["error"]
    assert imported(path, "--max-unjudged", 0.5)[1]["models"][1]["scores"]["strict"]["mean"] == 5.0


def test_scores_that_a_text_does_not_say_are_counted(file):
    path = file(judgment(1, "[[4]]", score=9), judgment(2, "[[5]]", score=5))
    _, report = imported(path)
    (model,) = report["models"]
    assert model["scores_read_otherwise"] == 1
    assert (model["scores"]["fastchat"]["mean"], model["scores"]["strict"]["mean"]) == (7.0, 4.5)


def test_several_files_models_and_judges_are_told_apart(file, tmp_path):
    one = file(judgment(1, "[[4]]", score=4), judgment(1, "[[6]]", score=6, judge="other"), name="one.jsonl")
    two = file(judgment(1, "[[8]]", turn=2, score=8), judgment(1, "[[2]]", score=2, model="n"), name="two.jsonl")
    _, report = imported(one, two)
    found = {(m["model"], m["judge"]): m["scores"]["strict"]["mean"] for m in report["models"]}
    assert found == {("m", "gpt-4"): 6.0, ("m", "other"): 6.0, ("n", "gpt-4"): 2.0}


def test_what_other_tools_write_is_read_as_what_it_means(file):
    """Ids and turns as tables write them, no turn but the prompt's name, a judge without a prompt, nulls."""
    rows = [
        judgment(81.0, "[[4]]", score=None, choice=None), judgment("81", "[[6]]", turn="2", score="6", repeat=None),
        judgment(82, "[[8]]", turn=1.0, score=8), judgment(82, "[[2]]", turn=2, score=2) | {"turn": None},
    ]  # fmt: skip
    for row in rows:
        row["judge"] = row["judge"] if row["turn"] is None else "gpt-4"
    (model,) = imported(file(*rows))[1]["models"]
    assert (model["questions"], model["judgments"], model["reruns"]) == (2, 4, 0)
    assert model["scores"]["strict"]["mean"] == 5.0 == model["scores"]["fastchat"]["mean"]


def test_a_file_whose_own_parser_failed_has_a_strict_mean_only(file):
    path = file(*(judgment(i, "[[5]]") for i in range(3)))
    status, said = ran("import", path)
    assert status == 0 and "5.0000" in said
    (model,) = imported(path)[1]["models"]
    assert model["scores"]["fastchat"]["mean"] is None and model["scores_read_otherwise"] == 3


def test_seeds_of_a_lineage_are_split_together(file):
    rows = [
        judgment(q, f"[[{(q + seed + turn) % 9 + 1}]]", turn=turn, model=f"mistral+tpo/seed{seed}", score=1)
        for seed in (1, 2, 3)
        for q in range(10)
        for turn in (1, 2)
    ]
    (split,) = imported(file(*rows))[1]["seeds"]
    assert (split["lineage"], split["seeds"]) == ("mistral+tpo", 3)
    assert split["variance"]["question"] is not None and split["variance"]["judge"] is None


def test_categories_come_from_a_file_of_questions(file, tmp_path):
    write_lines(
        tmp_path / "question.jsonl", [{"question_id": i, "category": "ab"[i % 2], "turns": []} for i in range(4)]
    )
    path = file(*(judgment(i, f"[[{i + 1}]]", score=i + 1) for i in range(4)))
    categories = imported(path, "--questions", tmp_path / "question.jsonl")[1]["models"][0]["scores"]["strict"][
        "categories"
    ]
    assert {name: part["mean"] for name, part in categories.items()} == {"a": 2.0, "b": 3.0}
    assert ran("import", path, "--questions", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "model_1": "a", "model_2": "b", "g1_winner": "tie"}, "compares two models"),
        ({"question_id": 1, "model": "m", "judge": ["j", "p"]}, "no 'judgment'"),
        (judgment(1, "[[1]]", turn=3), "turn is 3; it is 1 or 2"),
        (judgment(1, "[[1]]", model=None), "model is None; a name or a number is wanted"),
        (judgment([1], "[[1]]"), "question_id is [1]; a name or a number is wanted"),
        (judgment(1, "[[1]]", judge=None), "judge is [None, 'single-v1']; a model and a prompt's name are wanted"),
        (judgment(1, "[[1]]") | {"judge": []}, "judge is []; a model and a prompt's name are wanted"),
        (judgment(1, "[[1]]") | {"judge": {}}, "judge is {}; a model and a prompt's name are wanted"),
        (judgment(1, "[[1]]", choice="a"), "choice is 'a'; a whole number is wanted"),
        (judgment(1, None), "'judgment' is the judge's text, this is a NoneType"),
        (judgment(1, "[[1]]", score="ten"), "score is 'ten'; a number is wanted"),
        (judgment(1, "[[1]]", score=float("nan")), "score is nan; a number is wanted"),
    ],
)
def test_what_is_no_single_judgment_is_named_with_its_place(file, row, message):
    path = file(judgment(1, "[[1]]"), row)
    with pytest.raises(UserError, match=r"judgments\.jsonl, judgment 2: ") as error:
        judgments.read([path], {})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no judgment is in it"), ("{}\nnot json\n", "line 2: not JSON"), ("[1]\n", "a JSON object")],
)
def test_what_is_no_file_of_judgments_is_one_line(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        judgments.read([tmp_path / "x.jsonl"], {})
    with pytest.raises(UserError, match="no such file"):
        judgments.read([tmp_path / "absent.jsonl"], {})


def test_agreement_is_scipys_and_counts_what_cannot_be_compared(file):
    first = {("m", 1): 1, ("m", 2): 5, ("m", 3): 8, ("n", 1): 2, ("n", 2): 5, ("n", 3): 9, ("o", 1): 4}
    second = {("m", 1): 2, ("m", 2): 5, ("m", 3): 4, ("n", 1): 3, ("n", 2): 4, ("n", 3): 9, ("o", 2): 4}
    a = file(*(judgment(q, f"[[{s}]]", model=m) for (m, q), s in first.items()), judgment(9, "?"), name="a.jsonl")
    other = judgment(2, "[[1]]", model="o", judge="b")
    b = file(*(judgment(q, f"[[{s}]]", model=m, judge="b") for (m, q), s in second.items()), other, name="b.jsonl")
    status, said = ran("--agreement", a, b, "--json")
    found, pairs = json.loads(said), [(first[key], second[key]) for key in first if key in second]
    assert status == 0 and found["judges"] == ["gpt-4", "b"] and found["pairs"] == 6 and found["only_one_rated"] == 2
    assert found["exact"] == pytest.approx(2 / 6) and found["within_one"] == pytest.approx(5 / 6)
    assert found["difference"]["mean"] == pytest.approx(sum(x - y for x, y in pairs) / 6)
    assert found["spearman"] == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    # question 1: n above m by both; 2: a tie by one, m above n by the other; 3: n above m by both
    assert found["preferences"] == pytest.approx(2 / 3)
    assert found["models"]["n"] == 2 and found["models"]["spearman"] is None


def test_answers_that_differ_are_not_compared(file):
    a = file(judgment(1, "[[4]]"), judgment(2, "[[4]]"), name="a.jsonl")
    b = file(judgment(1, "[[4]]", judge="b"), judgment(2, "[[1]]", judge="b", user_prompt="another"), name="b.jsonl")
    found = json.loads(ran("--agreement", a, b, "--json")[1])
    assert (found["pairs"], found["other_answers"], found["exact"]) == (1, 1, 1.0)


def test_agreement_wants_one_judge_on_each_side_and_common_answers(file):
    both = file(judgment(1, "[[4]]"), judgment(1, "[[4]]", judge="b"), name="both.jsonl")
    one, none = file(judgment(1, "[[4]]"), name="one.jsonl"), file(judgment(2, "[[4]]"), name="none.jsonl")
    with pytest.raises(UserError, match="A: holds judgments by b, gpt-4"):
        judgments.agreement(judgments.read([both], {}), judgments.read([one], {}))
    with pytest.raises(UserError, match="no answer has a usable rating by both"):
        judgments.agreement(judgments.read([one], {}), judgments.read([none], {}))


@pytest.mark.parametrize("arguments", [[], ["--dry-run", "--agreement", "a", "b"]])
def test_a_command_without_a_task_says_what_there_is(arguments):
    found = CliRunner().invoke(app, ["judge", *arguments])
    assert isinstance(found.exception, UserError) and "--dry-run, --agreement A B, or a command" in str(found.exception)


def test_people_are_told_the_same(file):
    path = file(*(judgment(i, f"[[{i}]]", score=i) for i in range(1, 8)), judgment(8, "$ERROR$"))
    status, said = ran("import", path, "--max-unjudged", 0.2)
    assert status == 0 and "4.0000" in said and "ok: 7, error: 1" in said
    assert "100.0%" in ran("--agreement", path, path)[1]


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="TRIALIGN_REAL_DATA is not set")
def test_real_judgments_are_reported_as_they_were_published():
    folder = Path(REAL) / "mt_bench_judgments"
    status, report = imported(folder / "gpt-4_two_llama3.jsonl", "--questions", Path(REAL) / "mt_bench/question.jsonl")
    models = {model["model"]: model for model in report["models"]}
    griffin, normal = models["Meta-Llama-3-8B-Instruct-Griffin"], models["Meta-Llama-3-8B-Instruct-Normal"]
    assert status == 0 and report["rows"] == 330
    assert griffin["scores"]["fastchat"]["mean"] == pytest.approx(2.7) == griffin["scores"]["strict"]["mean"]
    assert normal["scores"]["fastchat"]["mean"] == pytest.approx(7.8434, abs=5e-5)
    assert (normal["reruns"], normal["statuses"]["error"], normal["unjudged"]) == (10, 4, 0)
    assert normal["scores"]["strict"]["n"] == 160 and normal["scores_read_otherwise"] == 0
    assert len(normal["scores"]["strict"]["categories"]) == 8
    status, report = imported(folder / "local_judge_unparseable.jsonl")
    (model,) = report["models"]
    assert status == 1 and model["scores"] is None and model["statuses"]["no_rating"] == model["rows"] == 69
    assert "69 of 69" in model["error"]
