"""Whether a chain still fits: every hash along it computed again.

What is held to what: files to the hashes in their step's record, in the store and at the declared places; records to
their fingerprints, and to each other; inputs to what made them; downloads to the lock's hashes; judgments to the raw
responses that are stored. A record's own words (facts, versions, host, times) are held to nothing: who can write into
the tree can write them anew, and hashes with them. `docs/provenance.md` says what follows from that.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from trialign import paths, steps
from trialign.errors import UserError
from trialign.reporting.explain import Chain
from trialign.reporting.tree import Made, Record, Tree, read_record

CHUNK = 1 << 24
SHORT = 12
Tell = Callable[[int], None]


@dataclass
class Report:
    """What a check found. problems: what no longer fits; unchecked: what could not be looked at, and why.

    files, bytes: that were read, each file once however many names it has.
    """

    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


def size(chain: Chain) -> int:
    """Return how many bytes a check will read, about: those that the records of the chain name."""
    there = {
        (status.st_dev, status.st_ino): status.st_size
        for made in chain.steps.values()
        for file in _copies(chain.tree, made)
        for status in [file.stat()]
    }
    return sum(there.values())


def check(chain: Chain, tell: Tell = lambda read: None) -> Report:
    """Compute every hash of a chain again. tell: is called with the number of bytes read, as they are."""
    work = _Check(chain, tell)
    for made in chain.steps.values():
        work.step(made)
    work.local()
    return work.report


def _copies(tree: Tree, made: Made) -> Iterator[Path]:
    """Yield every file that is there of those that a result's record names."""
    for name in made.record["files"] if made.record else ():
        for folder in tree.folders(made):
            if (tree.root / folder / name).is_file():
                yield tree.root / folder / name


class _Check:
    """A check under way."""

    def __init__(self, chain: Chain, tell: Tell) -> None:
        self.chain, self.tree, self.report = chain, chain.tree, Report()
        self._tell = tell
        self._known: dict[tuple[int, int], str] = {}  # device and inode -> SHA-256
        self._told_of: dict[tuple[int, int], str] = {}

    def step(self, made: Made) -> None:
        """Check a step."""
        if made.record is None:
            self._problem(f"{made.fingerprint}: neither the store nor a declared place holds the record of this input")
            return
        self._fingerprint(made, made.record)
        self._records(made, made.record)
        self._files(made, made.record)
        self._surplus(made, made.record)
        self._inputs(made)
        if not made.places:
            self._problem(
                f"{made.where}: no declared place has the record of this result of step {made.step} any more: it was "
                f"made anew since, or its {steps.RUN_JSON} is gone"
            )
        if made.step in ("fetch", "web"):
            self._source(made, made.record)
        if made.step == "judge":
            self._judgments(made, made.record)

    def local(self) -> None:
        """Check the inputs that no step made, where the record says where they were."""
        for digest, each in self.chain.local.items():
            path = Path(each.given) if each.given else None
            if path is None or not path.exists():
                self.report.unchecked.append(
                    f"input {each.name}, contents {digest[:SHORT]}: local files, {each.given or 'no record says which'}"
                )
            elif steps.input_fingerprint(path) != digest:
                self._problem(f"{path}: the files there are not those that were read (input {each.name})")

    def _problem(self, text: str) -> None:
        if text not in self.report.problems:
            self.report.problems.append(text)

    def _fingerprint(self, made: Made, record: Record) -> None:
        found = steps.digest({"recipe": record["recipe"], "inputs": record["inputs"]})
        if found != made.fingerprint or record["fingerprint"] != made.fingerprint:
            self._problem(
                f"{self._record_file(made)}: recipe and inputs have the fingerprint {found[:SHORT]}, not "
                f"{made.fingerprint[:SHORT]}"
            )

    def _record_file(self, made: Made) -> Path:
        """Return where a step's record is read from."""
        return Path(paths.STORE) / made.fingerprint / steps.RUN_JSON if made.stored else made.places[0].record

    def _records(self, made: Made, record: Record) -> None:
        for place in made.places:
            if read_record(self.tree.root / place.record) != record:
                self._problem(f"{place.record}: says something else than the store's record of {made.fingerprint}")

    def _files(self, made: Made, record: Record) -> None:
        """Hold each file to its hash, in every folder that is to hold it."""
        for name, wanted in record["files"].items():
            there = [folder / name for folder in self.tree.folders(made) if (self.tree.root / folder / name).is_file()]
            for file in there:
                self._file(file, wanted)
            if not there and made.pruned:
                self.report.unchecked.append(f"{made.where}: {name}: removed by trialign prune, {made.pruned}")
            elif not there or (len(there) < len(self.tree.folders(made)) and not made.pruned):
                lacking = next(folder / name for folder in self.tree.folders(made) if folder / name not in there)
                self._problem(f"{lacking}: is not there")

    def _file(self, file: Path, wanted: str) -> None:
        status = (self.tree.root / file).stat()
        identity = status.st_dev, status.st_ino
        if identity not in self._known:
            self._known[identity] = self._sha256(self.tree.root / file)
            self.report.files += 1
            self.report.bytes += status.st_size
        found = self._known[identity]
        if found == wanted or self._told_of.get(identity) == wanted:
            return
        self._told_of[identity] = wanted  # its other names have the same bytes
        self._problem(f"{file}: its contents are {found[:SHORT]}, recorded were {wanted[:SHORT]}")

    def _sha256(self, file: Path) -> str:
        import hashlib

        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                self._tell(len(chunk))
        return digest.hexdigest()

    def _surplus(self, made: Made, record: Record) -> None:
        """What lies beside the files of the record: who reads the folder, a step or a loader, may read it too.

        Of a declared place not the folders below it that the record names no file in: a run's folder holds the
        results of other steps.
        """
        own = {Path(name).parts[0] for name in record["files"] if len(Path(name).parts) > 1}
        for folder in self.tree.folders(made):
            there = [] if folder == Path() else (self.tree.root / folder).rglob("*")  # artifacts share the tree's root
            for file in sorted(filter(Path.is_file, there)):
                inside = file.relative_to(self.tree.root / folder)
                others = folder.parts[0] != paths.STORE and len(inside.parts) > 1 and inside.parts[0] not in own
                known = file.name in (steps.RUN_JSON, steps.SNAKEMAKE_TIMESTAMP) or inside.as_posix() in record["files"]
                if not others and not known:
                    self._problem(f"{folder / inside}: is there, but the step's record does not name it")

    def _inputs(self, made: Made) -> None:
        """Hold the inputs to what made them: the place that was read must be one of that result."""
        for each in self.chain.inputs(made):
            maker = self.chain.steps.get(each.fingerprint)
            if each.place in (None, ".", steps.RUN_JSON) or maker is None or maker.record is None:
                continue
            if not any(Path(each.place) in (Path(name), *Path(name).parents) for name in maker.record["files"]):
                self._problem(f"{made.where}: its input {each.name} was '{each.place}', which {maker.where} has not")

    def _source(self, made: Made, record: Record) -> None:
        """Hold a download to the hashes that the lock, or the config, gave its recipe."""
        from trialign.data.hub import HASHES

        recipe = record["recipe"]
        if made.step == "fetch":
            wanted = recipe["files"]
        else:
            wanted = {
                name: f"sha256:{value}" for name, value in recipe["source"]["files"].items() if value != "unknown"
            }
        if not wanted:
            self.report.unchecked.append(f"{made.where}: it was not locked, so no hash but its record's is known")
        for name, value in wanted.items():
            file = self.tree.file(made, name)
            if file is None:
                continue  # told among the files
            kind = value.partition(":")[0]
            found = f"{kind}:{HASHES[kind](file)}"
            if found != value:
                self._problem(f"{file.relative_to(self.tree.root)}: is {found}, and the lock says {value}")

    def _judgments(self, made: Made, record: Record) -> None:
        """Hold published judgments to the responses as they came, where the judge is a model and they are stored."""
        from trialign.evaluation.responses import FILE

        if record["recipe"]["judge"]["kind"] == "rubric":
            return  # a program: it keeps no responses
        stored = self.tree.root / paths.SHARED / FILE
        if not stored.is_file():
            self.report.unchecked.append(f"{made.where}: no stored responses ({paths.SHARED}/{FILE}) to hold them to")
            return
        try:
            with closing(sqlite3.connect(f"{stored.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                self._compare(made, record, connection)
        except (UserError, sqlite3.DatabaseError, OSError, ValueError, LookupError) as error:
            self._problem(f"{made.where}: judgments cannot be held to the stored responses: {error}")

    def _compare(self, made: Made, record: Record, connection: sqlite3.Connection) -> None:
        """Compare the texts of judgments with the responses under the keys that the judge's step asked for."""
        from trialign.evaluation import judge, judged, questions
        from trialign.recipes import JudgeRecipe

        asked, answers = self._input(made, "questions"), self._input(made, "answers")
        file = self.tree.file(made, judged.JUDGMENTS)
        if file is None or asked is None or answers is None:
            self.report.unchecked.append(f"{made.where}: its judgments, answers or questions are not there any more")
            return
        recipe = JudgeRecipe.model_validate_json(json.dumps(record["recipe"]))
        keys, lost = judge.stored_under(recipe, asked, answers), 0
        for line in questions.read_lines(file):
            key = keys[line["question_id"], line["choice"], line["turn"], line["repeat"]].pop(0)
            row = connection.execute("SELECT response FROM responses WHERE key = ?", (key,)).fetchone()
            lost += row is None
            if row is not None and judge.said(row[0]) != line["judgment"]:
                where = f"question {line['question_id']}, turn {line['turn']}"
                self._problem(f"{file.relative_to(self.tree.root)}: {where}: not what the judge responded")
        if lost:
            self.report.unchecked.append(f"{made.where}: {lost} judgments of which the responses are not stored")

    def _input(self, made: Made, name: str) -> Path | None:
        """Return where the only input of a name lies now."""
        (each,) = [each for each in made.inputs if each.name == name]
        if each.place is None:
            return Path(each.given) if each.given and Path(each.given).exists() else None
        return self.tree.file(self.tree.made(each.fingerprint), each.place)
