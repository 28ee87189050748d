from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from invented import Study

from trialign.data import chat, triples
from trialign.recipes import DistributionsRecipe
from trialign.reporting.distributions import distributions, draw

RNG = np.random.default_rng(3)
SCORES = [sorted(map(float, RNG.integers(1, 11, 3)), reverse=True) for _ in range(40)]
LONG = RNG.integers(1, 30, (40, 4))


@pytest.fixture
def prepared(tmp_path: Path) -> list[Path]:
    """Prepared triples and conversations, with the schemas of the steps that make them."""
    folders = [tmp_path / "prepared" / name for name in ("triples", "chat")]
    rows = [
        {
            "prompt_id": str(i),
            **{name: " ".join(["word"] * n) for name, n in zip(("prompt", *triples.BRANCHES), LONG[i], strict=True)},
            "scores": SCORES[i],
            "source": "x",
            "models": ["a", "b", "c"],
        }
        for i in range(40)
    ]
    talk = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "well\n thank you"}]
    talks = [{"prompt_id": str(i), "messages": talk * (1 + i % 3)} for i in range(9)]
    for folder, schema, data in zip(folders, (triples.SCHEMA, chat.SCHEMA), (rows, talks), strict=True):
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(data, schema=schema), folder / "train.parquet")
    return folders


@pytest.fixture
def tokens(tmp_path: Path) -> list[Path]:
    """Tokens of fewer rows: some were too long."""
    folders = [tmp_path / "tokens" / name for name in ("triples", "chat")]
    of_triples = {name: [[1] * n for n in LONG[:30, i]] for i, name in enumerate(("prompt", *triples.BRANCHES))}
    masks = [[0] * 3 + [1] * (i + 1) for i in range(5)]
    of_chat = {"input_ids": [[7] * len(mask) for mask in masks], "loss_mask": masks}
    for folder, columns in zip(folders, (of_triples, of_chat), strict=True):
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / "train.parquet")
    return folders


def recipe(tokenizer: str = "") -> DistributionsRecipe:
    return DistributionsRecipe(
        name="data", title="Data", caption="Data.", seeds=(1,), data=("triples", "chat"), tokenizer=tokenizer
    )


def series(frame: pd.DataFrame, data: str, panel: str, name: str) -> list[float]:
    """The numbers behind a series, from how often each occurs."""
    own = frame[(frame["data"] == data) & (frame["panel"] == panel) & (frame["series"] == name)]
    assert own["share"].tolist() == pytest.approx((own["rows"].cumsum() / own["rows"].sum()).tolist())
    return own["value"].repeat(own["rows"]).tolist()


def test_the_csv_gives_the_data_back(study: Study, prepared: list[Path]) -> None:
    frame = pd.read_csv(study.run(distributions, recipe(), data=prepared) / "data.csv")
    for i, name in enumerate(("prompt", "reference", "chosen", "rejected")):
        assert series(frame, "triples", "length", name) == sorted(LONG[:, i])
    reference, chosen, rejected = np.array(SCORES).T
    assert series(frame, "triples", "score", "chosen") == sorted(chosen)
    assert series(frame, "triples", "score gap", "reference − chosen") == sorted(reference - chosen)
    assert series(frame, "triples", "score gap", "reference − rejected") == sorted(reference - rejected)
    assert series(frame, "chat", "length", "conversation") == [6.0] * 3 + [12.0] * 3 + [18.0] * 3
    assert series(frame, "chat", "length", "answers") == [3.0] * 3 + [6.0] * 3 + [9.0] * 3
    assert set(frame.loc[frame["data"] == "chat", "panel"]) == {"length"}  # conversations have no scores


def test_lengths_are_tokens_where_they_are_given(study: Study, prepared: list[Path], tokens: list[Path]) -> None:
    out = study.run(distributions, recipe("Mistral"), data=prepared, tokens=tokens)
    frame = pd.read_csv(out / "data.csv")
    assert series(frame, "triples", "length", "rejected") == sorted(LONG[:30, 3])
    assert len(series(frame, "triples", "score", "rejected")) == 40
    assert series(frame, "chat", "length", "conversation") == [4, 5, 6, 7, 8]
    assert series(frame, "chat", "length", "answers") == [1, 2, 3, 4, 5]


def test_the_picture_shows_shares_and_medians(study: Study, prepared: list[Path]) -> None:
    frame = pd.read_csv(study.run(distributions, recipe(), data=prepared) / "data.csv")
    figure = draw(recipe(), frame)
    names = [axes.get_title(loc="left") for axes in figure.axes]
    assert names == ["triples: length", "triples: score", "triples: score gap", "chat: length"]
    length, score = figure.axes[:2]
    assert length.get_xlabel() == "words"
    lines = {line.get_label(): line for line in score.lines if not line.get_label().startswith("_")}
    chosen = np.array(SCORES)[:, 1]
    for value, share in zip(lines["chosen"].get_xdata(), lines["chosen"].get_ydata(), strict=True):
        assert share in (0, pytest.approx((chosen <= value).mean()))
    dots = [line.get_xdata()[0] for line in score.lines if line.get_marker() == "o"]
    assert dots == [np.quantile(column, 0.5, method="inverted_cdf") for column in np.array(SCORES).T]
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in (length, score)]
    assert all(colours[0][name] == colours[1][name] for name in triples.BRANCHES)  # one colour, one meaning
