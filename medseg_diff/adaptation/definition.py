"""What an experiment's YAML may say, and the comparisons that it stands for.

A YAML with a ``source`` and ``targets`` is one comparison, or several with ``both_directions``; one
with ``sites`` is a comparison for each site of a case list, and for each that is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import Field, ValidationError

from medseg_diff.adaptation import rows as methods
from medseg_diff.config import Section
from medseg_diff.data.caselist import CaseList, Part, load_caselist
from medseg_diff.data.frozen_shifts import load_shifts
from medseg_diff.data.sample import sample_caselist
from medseg_diff.errors import UsageError

Place = TypeVar("Place", "Domain", "Sites")
# Key of the comparison whose results lie in the experiment's folder itself.
FORWARD = ""


class Domain(Section):
    """Where scans come from: a case list or some of its sites, as it is or through a shift."""

    cases: str = Field(description="case list (JSON), from the experiment's folder; or 'sample'")
    root: str | None = None
    sites: tuple[str, ...] | None = Field(
        None, min_length=1, description="cases of these sites alone"
    )
    shift: str | None = Field(None, description="name in data/shifts.yaml")
    level: str | None = Field(None, description="named strength of the shift")


class Sites(Section):
    """Domains that are the sites of one case list."""

    cases: str = Field(description="case list (JSON) whose cases have a site")
    root: str | None = None
    only: tuple[str, ...] | None = Field(None, min_length=2, description="these; all by default")
    pairs: bool = Field(True, description="every site as source, each other one as target")
    leave_one_out: bool = Field(False, description="all sites but one as source, that one target")


class Budget(Section):
    """What every comparison of an experiment shares."""

    name: str
    config: str = Field(
        description="YAML of the model and its budget, from the experiment's folder"
    )
    set: tuple[str, ...] = Field((), description="key.sub=value on top of it, as for train --set")
    rows: tuple[str, ...] = Field(("source_only", "oracle"), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    part: Part = Field("test", description="what is scored; nothing is chosen on it")
    train_cases: int | None = Field(None, ge=1, description="the first N of each domain's")
    scored_cases: int | None = Field(None, ge=1, description="the first N of each domain's")


class Experiment(Budget):
    """One comparison: a source, and targets that its rows are judged on."""

    source: Domain
    targets: dict[str, Domain] = Field(min_length=1)


class Definition(Budget):
    """The YAML."""

    source: Domain | None = None
    targets: dict[str, Domain] = Field({}, description="by name")
    both_directions: bool = Field(
        False, description="each target as source, too, with the source as its target"
    )
    sites: Sites | None = Field(None, description="in the place of source and targets")


def load_experiments(path: str | Path) -> dict[str, Experiment]:
    """Read an experiment; paths in it become absolute.

    Returns:
        Comparisons by the name of the folder that each gets below the experiment's; one whose name
        is "" has the experiment's own.

    Raises:
        UsageError: on a missing file, broken YAML, unknown keys, rows, shifts, levels or sites.
    """
    path = Path(path)
    found = _read(path)
    for name in found.rows:
        methods.method(name)
    here = path.resolve().parent
    comparisons: dict[str, Experiment] = {}
    for name, source, targets in _comparisons(found, path, here):
        for domain in (source, *targets.values()):
            _check(domain, path)
        kept = {key: getattr(found, key) for key in Budget.model_fields}
        kept |= {"config": str(here / found.config), "source": source, "targets": targets}
        comparisons[name] = Experiment.model_validate(kept)
    return comparisons


def load_experiment(path: str | Path) -> Experiment:
    """The comparison of an experiment that stands for one alone.

    Raises:
        UsageError: as :func:`load_experiments`, or if there are several.
    """
    found = load_experiments(path)
    if len(found) > 1:
        raise UsageError(
            "the experiment stands for several comparisons", file=path, found=", ".join(found)
        )
    return next(iter(found.values()))


def listed_cases(domain: Domain | Sites) -> CaseList:
    """A domain's case list, or that of the sites it names.

    Raises:
        InputError: if it is no case list.
        UsageError: if no case is of a site.
    """
    if domain.cases == "sample":
        cases = sample_caselist()
    else:
        cases = load_caselist(domain.cases, domain.root)
    wanted = domain.sites if isinstance(domain, Domain) else domain.only
    if wanted is None:
        return cases
    known = {c.site for c in cases.cases if c.site is not None}
    for site in wanted:
        if site not in known:
            raise UsageError(
                "no case is of that site",
                file=domain.cases,
                field="sites",
                found=site,
                expected=", ".join(sorted(known)) or "cases with a site",
            )
    return cases.with_cases(c for c in cases.cases if c.site in wanted)


def _read(path: Path) -> Definition:
    if not path.is_file():
        raise UsageError("no such experiment", file=path, remedy="check the path")
    try:
        found = Definition.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {str(error).splitlines()[0]}", file=path) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        raise UsageError(first["msg"], file=path, field=field) from None
    plain = found.source is not None and bool(found.targets)
    if plain == (found.sites is not None) or (found.sites is not None and found.source is not None):
        raise UsageError(
            "an experiment has a source and targets, or sites", file=path, field="source"
        )
    if found.sites is not None and found.both_directions:
        raise UsageError(
            "pairs of sites have both directions already", file=path, field="both_directions"
        )
    return found


def _comparisons(
    found: Definition, path: Path, here: Path
) -> Iterator[tuple[str, Domain, dict[str, Domain]]]:
    """Name, source and targets of each comparison."""
    if found.sites is not None:
        yield from _of_sites(_absolute(found.sites, here), path)
        return
    if found.source is None:
        raise ValueError("a definition that was read has a source or sites")
    source = _absolute(found.source, here)
    targets = {name: _absolute(one, here) for name, one in found.targets.items()}
    yield FORWARD, source, targets
    if found.both_directions:
        for name, target in targets.items():
            yield f"back_from_{name}", target, {"source": source}


def _of_sites(sites: Sites, path: Path) -> Iterator[tuple[str, Domain, dict[str, Domain]]]:
    names = sorted({c.site for c in listed_cases(sites).cases if c.site is not None})
    if len(names) < (3 if sites.leave_one_out else 2):
        raise UsageError(
            "too few sites for pairs, or for leaving one of them out",
            file=path,
            field="sites",
            found=", ".join(names) or "no case with a site",
            expected="3 or more for leave_one_out, else 2 or more",
        )

    def domain(*chosen: str) -> Domain:
        return Domain(cases=sites.cases, root=sites.root, sites=chosen)

    folders = _folders(names, path)
    if sites.pairs:
        for name in names:
            others = {folders[other]: domain(other) for other in names if other != name}
            yield f"from_{folders[name]}", domain(name), others
    if sites.leave_one_out:
        for name in names:
            rest = [other for other in names if other != name]
            yield f"all_but_{folders[name]}", domain(*rest), {folders[name]: domain(name)}


def _folders(names: list[str], path: Path) -> Mapping[str, str]:
    """Sites as names of folders."""
    found = {name: re.sub(r"[^\w.-]+", "_", name).strip(".") or "_" for name in names}
    if len(set(found.values())) < len(found):
        raise UsageError(
            "sites differ by signs that no folder can have", file=path, field="sites",
            found=", ".join(names),
        )  # fmt: skip
    return found


def _absolute(domain: Place, here: Path) -> Place:
    if domain.cases == "sample":
        return domain
    root = None if domain.root is None else str(here / domain.root)
    return domain.model_copy(update={"cases": str(here / domain.cases), "root": root})


def _check(domain: Domain, path: Path) -> None:
    """Refuse a shift without its level, and shifts and levels that do not exist."""
    if (domain.shift is None) != (domain.level is None):
        raise UsageError("a shift needs its level, and a level its shift", file=path, field="shift")
    if domain.shift is not None:
        load_shifts().get(domain.shift, str(domain.level))
