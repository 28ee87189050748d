"""A whole study as an RO-Crate: what it came to, what made it, and how, for an archive or another tool.

The crate is a Workflow Run Crate (https://w3id.org/ro/wfrun/workflow/0.5) where the Snakefile lies in the working
directory, else a Process Run Crate (https://w3id.org/ro/wfrun/process/0.5), on RO-Crate 1.1. Every step in the results
tree is a CreateAction. Artifacts, items, answers, judgments, logs, cards and records are there as files; models and
data are named by their hashes (`ni:` addresses, RFC 6920), for their bytes are large, or under licences of others.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.model.entity import Entity
from rocrate.model.softwareapplication import SoftwareApplication
from rocrate.rocrate import ROCrate

from trialign import paths
from trialign.errors import UserError
from trialign.prune import MODEL_STEPS
from trialign.reporting.explain_text import what
from trialign.reporting.tree import Made, Record, Tree
from trialign.steps import RUN_JSON, digest

VERSION = "1.1"  # of RO-Crate: the one that the run profiles are written for
PROCESS = ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5")
WORKFLOW = (
    PROCESS,
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
SNAKEFILE = "Snakefile"
# of the working directory: what the study was run with
SOURCES = ("workflow/**/*", "config/*.yaml", "config/*.json", "paper/*", "requirements.lock")
# of the steps whose other files are named by hash alone
SMALL = ("card.json", "card.html", "log.jsonl", "source.json", "diverged.json")
REFERENCED = (
    "world",
    "fetch",
    "web",
    "tokenizer",
    "chat",
    "triples",
    "tokens",
    "reference",
    "overlap",
    "choose",
    *MODEL_STEPS,
)
TYPES = {
    ".csv": "text/csv", ".html": "text/html", ".json": "application/json", ".jsonl": "application/jsonl",
    ".md": "text/markdown", ".parquet": "application/vnd.apache.parquet", ".pdf": "application/pdf",
    ".png": "image/png", ".svg": "image/svg+xml", ".tex": "text/x-tex", ".yaml": "application/yaml",
}  # fmt: skip
README = """# {name}

{description}

`ro-crate-metadata.json` says what each file is (RO-Crate 1.1, Process Run Crate): every step is a `CreateAction` with
what it read (`object`), what it made (`result`), with which software (`instrument`) and when; its whole record, recipe
included, is the `run.json` that it is the `subjectOf`. The fingerprint of a step is its `identifier`. What is named by
hash alone has an address `ni:///sha-256;...`: the SHA-256 of its bytes.
"""
NO_LICENCE = "No licence is stated for these results: ask who made them. Models and data have licences of their own."


def export(root: Path, out: Path, *, models: bool = False) -> dict[str, int]:
    """Write the results tree `root` as a crate: a folder, or a file if `out` ends in .zip.

    models: with the bytes of models, too. The same tree gives the same metadata. Returns how many steps, files and
    bytes are in it, and how many files are named by their hash alone. UserError: no results tree, nothing in it, `out`
    is there already, a file that is not what its record says.
    """
    if not (root / paths.STAMP).is_file():
        raise UserError(f"{root}: not a results tree: it has no {paths.STAMP}")
    if out.exists():
        raise UserError(f"{out}: is there already: give another place, or remove it first")
    export = _Export(Tree(root), models)
    if not export.steps:
        raise UserError(f"{root}: no step has published anything here yet")
    export.fill()
    if out.suffix == ".zip":
        export.crate.write_zip(out)
    else:
        export.crate.write(out)
    return export.counts


class _Export:
    """A crate that is being filled."""

    def __init__(self, tree: Tree, models: bool) -> None:
        self.tree, self.models = tree, models
        self.crate = ROCrate(version=VERSION)
        self.crate.metadata.extra_terms["sha256"] = "http://schema.org/sha256"  # the context of 1.1 lacks it
        every = [tree.made(fingerprint) for fingerprint in tree.places]
        self.steps = {made.fingerprint: made for made in every if made.record}
        self.records: dict[str, Entity] = {}
        self.results: dict[str, dict[str, Entity]] = {}  # fingerprint -> file of that result -> entity
        self.counts = {"steps": len(self.steps), "files": 0, "bytes": 0, "by_hash": 0}

    def fill(self) -> None:
        """Add everything."""
        ordered = sorted(self.steps.values(), key=lambda made: (made.record["started"], made.where))
        for made in ordered:
            self.results[made.fingerprint] = self._files(made, made.record)
            self.records[made.fingerprint] = self._record(made)
        actions = [self._action(made, made.record) for made in ordered]
        name = json.loads((self.tree.root / paths.STAMP).read_text())["name"]
        self._root(name, max(_ended(made.record) for made in ordered))
        profiles: tuple[tuple[str, str, str], ...] = (PROCESS,)
        if Path(SNAKEFILE).is_file():
            profiles = WORKFLOW
            actions.insert(0, self._workflow(name, ordered))
        self.crate.root_dataset["mentions"] = actions
        self.crate.root_dataset["conformsTo"] = [
            self._context(uri, "CreativeWork", name=title, version=version) for uri, title, version in profiles
        ]

    def _root(self, name: str, ended: datetime) -> None:
        licence = self._context("#licence", "CreativeWork", name="No licence stated", description=NO_LICENCE)
        self.crate.name = f"Study '{name}' by trialign"
        self.crate.description = (
            f"Results of the experiment '{name}': tables and figures, the items, answers and judgments behind them, "
            "and a record of every step that made them. Models and data are named by the hashes of their files."
        )
        self.crate.datePublished = ended  # when its last result was made: the same tree gives the same crate
        self.crate.license = licence
        readme = README.format(name=self.crate.name, description=self.crate.description)
        about = {"name": "README.md", "encodingFormat": "text/markdown", "about": {"@id": "./"}}
        self.crate.add_file(StringIO(readme), "README.md", properties=about)

    def _workflow(self, name: str, ordered: list[Made]) -> Entity:
        """Add the workflow's files, and the action that all of its steps are part of."""
        workflow = self.crate.add_workflow(
            SNAKEFILE, SNAKEFILE, main=True, lang="snakemake", properties=_told(Path(SNAKEFILE))
        )
        versions = {made.record["versions"]["trialign"] for made in ordered}
        workflow["name"], workflow["version"] = "trialign's workflow", ", ".join(sorted(versions))
        self._count(Path(SNAKEFILE))
        files = sorted({file for pattern in SOURCES for file in Path().glob(pattern) if file.is_file()})
        parts = [self._file(file, file.as_posix(), _told(file)) for file in files]
        workflow["hasPart"] = [part for part, file in zip(parts, files, strict=True) if file.suffix == ".smk"]
        config = self.tree.root / paths.SHARED / paths.CONFIG
        if config.is_file():
            told = _told(config) | {"description": "the config of the last start, with all overlays"}
            given = [self._file(config, paths.CONFIG, told)]
        else:
            given = [part for part, file in zip(parts, files, strict=True) if file.parts[0] == "config"]
        artifacts = [made for made in ordered if made.places[0].folder == Path()]
        properties = {
            "name": f"experiment '{name}'",
            "description": f"the whole study: {len(ordered)} steps, of which each is an action of its own",
            "startTime": min(made.record["started"] for made in ordered),
            "endTime": max(_ended(made.record) for made in ordered).isoformat(),
            "actionStatus": "http://schema.org/CompletedActionStatus",
        }
        result = [entity for made in artifacts for entity in self.results[made.fingerprint].values()]
        return self._acted(workflow, "#study", given, result, properties)

    def _action(self, made: Made, record: Record) -> Entity:
        """Add a step: what it read, what it made, with what, when and where."""
        read = [entity for each in made.inputs for entity in self._read(each.fingerprint, each.place, each.given)]
        results = list(self.results[made.fingerprint].values())
        note = f"on {record['host']}, {record.get('threads') or 'unknown number of'} threads"
        gpus = record.get("gpus")
        properties = {
            "name": f"{made.step}: {made.where}",
            "description": f"{what(record)}; {note}{'' if gpus is None else f', {gpus} GPUs'}",
            "identifier": made.fingerprint,
            "startTime": record["started"],
            "endTime": _ended(record).isoformat(),
            "actionStatus": "http://schema.org/CompletedActionStatus",
            "subjectOf": self.records[made.fingerprint],
        }
        return self._acted(self._software(record), f"#step-{made.fingerprint}", read, results, properties)

    def _acted(
        self, instrument: Entity, identifier: str, read: list[Entity], made: list[Entity], properties: dict[str, Any]
    ) -> Entity:
        return self.crate.add_action(
            instrument, identifier, object=_once(read), result=_once(made), properties=properties
        )

    def _read(self, fingerprint: str, place: str | None, given: str | None) -> Iterator[Entity]:
        """Yield what an input was: the files of what made it that lie in that place."""
        if place is None or fingerprint not in self.results:
            name = given or f"contents {fingerprint}"
            yield self._context(f"#input-{fingerprint}", "CreativeWork", name=name, identifier=fingerprint)
            return
        if place == RUN_JSON:
            yield self.records[fingerprint]
        for name, entity in self.results[fingerprint].items():
            if place == "." or Path(place) in (Path(name), *Path(name).parents):
                yield entity

    def _files(self, made: Made, record: Record) -> dict[str, Entity]:
        """Add the files of a result: their bytes, or their hashes alone."""
        found = {}
        for name, sha256 in record["files"].items():
            place, file = (made.places[0].folder / name).as_posix(), self.tree.file(made, name)
            whole = made.step not in REFERENCED or Path(name).name in SMALL
            if (whole or (self.models and made.step in MODEL_STEPS)) and file is not None:
                if (actual := _sha256(file)) != sha256:
                    raise UserError(
                        f"{file}: is not what was recorded ({actual[:12]}, not {sha256[:12]}); trialign explain "
                        f"--check {self.tree.root / made.where} says more"
                    )
                found[name] = self._file(file, place, _told(file))
            else:
                found[name] = self._by_hash(place, sha256, file)
        return found

    def _record(self, made: Made) -> Entity:
        place = made.places[0].record
        return self._file(self.tree.root / place, place.as_posix(), _told(self.tree.root / place))

    def _file(self, file: Path, place: str, properties: Mapping[str, Any]) -> Entity:
        self._count(file)
        return self.crate.add_file(file, place, properties=dict(properties))

    def _count(self, file: Path) -> None:
        self.counts["files"] += 1
        self.counts["bytes"] += file.stat().st_size

    def _by_hash(self, place: str, sha256: str, file: Path | None) -> Entity:
        """Name a file by its hash; several files of the same contents are one."""
        address = base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")
        size = {"contentSize": str(file.stat().st_size)} if file else {}
        self.counts["by_hash"] += 1
        return self._context(f"ni:///sha-256;{address}", "CreativeWork", name=place, sha256=sha256, **size)

    def _software(self, record: Record) -> Entity:
        """Add trialign as it was when a step ran, and the packages beside it."""
        versions, code = record["versions"], record.get("code")
        packages = [
            self._add(SoftwareApplication(self.crate, f"{address}#{version}", told))
            for name, version in sorted((versions | {"python": record["python"]}).items())
            if name != "trialign"
            for address in [_address(name, version)]
            for told in [{"name": name, "softwareVersion": version, "url": address}]
        ]
        commit = "" if not code else f"+{code['commit']}{'.changed' if code['changed'] else ''}"
        told = {
            "name": "trialign",
            "softwareVersion": versions["trialign"] + commit,
            "softwareRequirements": packages,
            "description": "runs one step of a study: trialign step",
        }
        identity = digest([versions, code, record["python"]])[:12]
        return self._add(SoftwareApplication(self.crate, f"#trialign-{identity}", told))

    def _context(self, address: str, kind: str, /, **properties: Any) -> Entity:
        return self._add(ContextEntity(self.crate, address, {"@type": kind, **properties}))

    def _add(self, entity: Entity) -> Entity:
        return self.crate.dereference(entity.id) or self.crate.add(entity)


def _address(name: str, version: str) -> str:
    """Return the page of a release; what follows a `+` is a build of it, which has no page of its own."""
    if name == "python":
        return f"https://www.python.org/downloads/release/python-{version.replace('.', '')}/"
    return f"https://pypi.org/project/{name}/{version.partition('+')[0]}/"


def _told(file: Path) -> dict[str, Any]:
    kind = TYPES.get(file.suffix, "text/plain" if file.suffix in ("", ".smk", ".rst", ".lock", ".jinja") else "")
    told = {"name": file.name, "sha256": _sha256(file), "contentSize": str(file.stat().st_size)}
    return told | ({"encodingFormat": kind} if kind else {})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ended(record: Record) -> datetime:
    return datetime.fromisoformat(record["started"]) + timedelta(seconds=round(record["seconds"]))


def _once(entities: list[Entity]) -> Entity | list[Entity] | None:
    """Return each entity once; one alone, as RO-Crate wants it, and None of none."""
    each = list({entity.id: entity for entity in entities}.values())
    return each if len(each) > 1 else next(iter(each), None)
