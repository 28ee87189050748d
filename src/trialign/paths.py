"""Every path of a results tree, once. Rules take the patterns (with `<results>` and wildcards), steps parse.

<results>/<artifact>.csv ...                          artifacts
<results>/data/{source,prepared,tokenizer,tokens}/    data
<results>/data/overlap/<data>                         which benchmark questions a data set holds
<results>/data/reference/<lineage>/seed<k>/...        a model's log-probabilities of a data set's responses
<results>/runs/<lineage>/seed<k>/model, run.json      models
<results>/runs/<lineage>/seed<k>/<suite>              harness suites
<results>/runs/<lineage>/seed<k>/mtbench/answers      answers, and one folder for each judge beside it
<results>/.store/<fingerprint>                        what was published; the rest are hard links to it
<results>/.work/<fingerprint>                         work in progress, its lease and its checkpoints
<results>/.shared/responses.sqlite                    what judges responded, raw, shared by all judging
<results>/.shared/endpoints.json                      how judges are reached, as the last start's config says
<results>/.shared/config.json                         the last start's config, with all overlays
<results>/.shared/tracking.json                       what trainings report to besides their log, as it says too
<results>/tracking/<lineage>/seed<k>                  what they reported
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

STORE = ".store"
WORK = ".work"
SHARED = ".shared"
ENDPOINTS = "endpoints.json"  # in SHARED
CONFIG = "config.json"  # in SHARED
TRACKING = "tracking.json"  # in SHARED
STAMP = "experiment.json"
PROVENANCE = "provenance"
TRACKED = "tracking"
AGAIN = ".again"  # in place of a log's suffix: its step is to be started again, and why
FAILED = ".failed"  # in place of a log's suffix: its step failed, when and why; gone once it is started again

WORLD = "<results>/data/world"
SOURCE = "<results>/data/source/{source}"
PREPARED = "<results>/data/prepared/{data}"
OVERLAP = "<results>/data/overlap/{data}"
TOKENIZER = "<results>/data/tokenizer/{model}"
TOKENS = "<results>/data/tokens/{model}/{data}"
REFERENCE = "<results>/data/reference/{lineage}/seed{seed}/{data}/{reading}"
RUN = "<results>/runs/{lineage}/seed{seed}"
MODEL = RUN + "/model"
RUN_JSON = RUN + "/run.json"
SUITE = RUN + "/{suite}"
ANSWERS = RUN + "/mtbench/answers"
JUDGED = RUN + "/mtbench/{judge}"  # SUITE of a judged benchmark, whose suite is mtbench/<judge>

_SUITE = re.compile(r"(?:.*/)?runs/(?P<lineage>[^/]+)/seed(?P<seed>\d+)/(?P<suite>[^/]+)(?:/(?P<judge>[^/]+))?/?")


class SuiteId(NamedTuple):
    """Which results a suite folder holds. `judge` is None for harness suites."""

    lineage: str
    seed: int
    suite: str
    judge: str | None


def parse_suite(path: Path) -> SuiteId:
    """Read the identity of a suite folder from its path; ValueError if it is not one."""
    match = _SUITE.fullmatch(path.as_posix())
    if not match:
        raise ValueError(f"{path} is not a suite folder (runs/<lineage>/seed<k>/<suite>[/<judge>])")
    return SuiteId(match["lineage"], int(match["seed"]), match["suite"], match["judge"])


def run_of(suite: Path) -> Path:
    """Return the run's folder of a suite folder."""
    return next(folder for folder in suite.parents if folder.parent.parent.name == "runs")


def find_commands() -> None:
    """Let jobs find the commands of this very Python environment, also when it was not activated."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
