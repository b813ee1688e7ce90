"""Many patients at once: a CSV table of files into a cohort."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hepalign.cases import s3
from hepalign.cases.case import ROLES, Split
from hepalign.cases.check import Finding
from hepalign.cases.sources.importing import CaseFiles, Imported, add_case
from hepalign.cases.sources.scans import ImportSettings
from hepalign.cases.splits import PAPER_SHARES
from hepalign.cases.writer import CohortWriter
from hepalign.errors import BadInputError, HepalignError, UsageError

LABELS = (*(f"{role}_{structure}" for role in ROLES for structure in ("liver", "tumour")), "ict_ablation")
LANDMARKS = tuple(f"{role}_landmarks" for role in ROLES)
SERIES = tuple(f"{role}_series" for role in ROLES)
COLUMNS = ("case", "patient", "stratum", *ROLES, *SERIES, "probe_mask", *LABELS, *LANDMARKS)


@dataclass(frozen=True)
class TableImport:
    """The cases that came in, and what kept the others out."""

    imported: tuple[Imported, ...]
    findings: tuple[Finding, ...]


def import_table(
    out: Path | str,
    table: Path,
    *,
    settings: ImportSettings,
    shares: dict[Split, float] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TableImport:
    """Import every row of a table; a bad row is told and the others go on, and a second run takes up the rest.

    Args:
        out: the cohort's folder or s3:// prefix.
        table: CSV with the columns `case` and any of `patient`, `stratum` (what the splits are stratified by),
            `pmr pct ict`, `{role}_series` (which of several DICOM series, by number), `probe_mask`, `{role}_liver`,
            `{role}_tumour`, `ict_ablation`, `{role}_landmarks`; files are paths relative to the table, absolute paths
            or s3:// places.
        settings: how images are read.
        shares: relative sizes of the splits.
        seed: which of the possible divisions.
        progress: called with (rows done, rows).

    Raises:
        BadInputError: `bad_table` where the table itself cannot be used.
    """
    rows = _rows(table)
    writer = CohortWriter(out)
    imported: list[Imported] = []
    findings: list[Finding] = []
    for done, row in enumerate(rows, start=1):
        case_id = row["case"]
        try:
            warnings = [] if writer.has(case_id) else _add(writer, row, table.parent, settings)
            imported.append(Imported(case_id, tuple(warnings)))
        except (BadInputError, UsageError) as error:
            findings.append(_finding(case_id, error))
        if progress is not None:
            progress(done, len(rows))
    if imported:
        writer.finish(shares=shares or PAPER_SHARES, seed=seed, stratify="stratum")
    return TableImport(tuple(imported), tuple(findings))


def _add(writer: CohortWriter, row: dict[str, str], base: Path, settings: ImportSettings) -> list[str]:
    def files(names: tuple[str, ...], ending: str = "") -> dict[str, Path | str]:
        return {name.removesuffix(ending): _place(row[name], base) for name in names if row.get(name)}

    case_files = CaseFiles(
        files(ROLES), files(LABELS), files(LANDMARKS, "_landmarks"), files(("probe_mask",)).get("probe_mask")
    )
    facts = {"stratum": row["stratum"]} if row.get("stratum") else {}
    series = {**settings.series, **_series(row)}
    return add_case(
        writer,
        row["case"],
        case_files,
        settings=replace(settings, series=series),
        patient=row.get("patient") or None,
        attributes=facts,
    )


def _series(row: dict[str, str]) -> dict[str, int]:
    chosen = {name.removesuffix("_series"): row[name] for name in SERIES if row.get(name)}
    for role, word in chosen.items():
        if not word.isdecimal():
            raise UsageError(f"{role}_series: is the number of a series, such as 2", code="no_such_series")
    return {role: int(word) for role, word in chosen.items()}


def _place(word: str, base: Path) -> Path | str:
    return word if word.startswith(s3.SCHEME) else base / word


def _finding(case_id: str, error: HepalignError) -> Finding:
    return Finding(case_id, error.message.partition(":")[0] if ": " in error.message else "", error.code, error.message)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{table.name}: cannot be read as a UTF-8 table", code="bad_table") from error
    reader = csv.DictReader(io.StringIO(text, newline=None), skipinitialspace=True)
    try:
        read, names = list(reader), set(reader.fieldnames or ())
    except csv.Error as error:
        raise BadInputError(f"{table.name}: is no CSV text", code="bad_table") from error
    if "case" not in names or not names <= set(COLUMNS):
        unknown = ", ".join(sorted(str(name) for name in names - set(COLUMNS))) or "none"
        message = f"{table.name}: needs a column 'case' and knows {', '.join(COLUMNS)}; unknown: {unknown}"
        raise BadInputError(message, code="bad_table")
    rows = [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in read]
    ids = [row["case"] for row in rows]
    if not rows or len(set(ids)) != len(ids):
        raise BadInputError(f"{table.name}: holds no case, or one case twice", code="bad_table")
    return rows
