"""Words of the command line that more than one command reads."""

from __future__ import annotations

from pathlib import Path

from hepalign.cases.case import ROLES
from hepalign.errors import BadInputError, UsageError

LEAST_VOXELS, MOST_VOXELS, MOST_VOXELS_IN_ALL = 8, 1024, 2**27


def parse_shape(text: str) -> tuple[int, int, int]:
    """`128,128,96` to a triple of voxels, or a `usage` error."""
    words = text.replace("x", ",").split(",")
    if len(words) == 3 and all(word.strip().isdecimal() for word in words):
        i, j, k = (int(word) for word in words)
        if all(LEAST_VOXELS <= n <= MOST_VOXELS for n in (i, j, k)) and i * j * k <= MOST_VOXELS_IN_ALL:
            return i, j, k
    raise UsageError(
        f"--shape takes three numbers of voxels from {LEAST_VOXELS} to {MOST_VOXELS}, at most {MOST_VOXELS_IN_ALL} "
        f"voxels in all, such as 128,128,96, not {text!r}",
        code="usage",
    )


def parse_labels(words: list[str]) -> dict[str, str]:
    """`pmr:tumour=FILE` words to `{"pmr_tumour": "FILE"}`."""
    labels: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        role, colon, structure = name.partition(":")
        known = structure in ("liver", "tumour") or (role, structure) == ("ict", "ablation")
        if not (equals and colon and path) or role not in ROLES or not known:
            raise UsageError(
                "a label is ROLE:STRUCTURE=FILE with ROLE pmr, pct or ict and STRUCTURE liver or tumour "
                f"(ablation, too, for ict), not {name!r}",
                code="usage",
            )
        labels[f"{role}_{structure}"] = path
    return labels


def parse_role_files(words: list[str]) -> dict[str, str]:
    """`pct=FILE` words to `{"pct": "FILE"}`."""
    files: dict[str, str] = {}
    for word in words:
        role, equals, path = word.partition("=")
        if not equals or role not in ROLES or not path:
            raise UsageError(f"expected ROLE=FILE with ROLE pmr, pct or ict, not {role!r}", code="usage")
        files[role] = path
    return files


def parse_role_numbers(words: list[str]) -> dict[str, int]:
    """`pct=2` words to `{"pct": 2}`."""
    numbers = parse_role_files(words)
    if not all(word.isdecimal() for word in numbers.values()):
        raise UsageError("expected ROLE=N, the number of a series as the refusal lists them", code="usage")
    return {role: int(word) for role, word in numbers.items()}


def located(word: str) -> str:
    """A file's place, there already unless it is an `s3://` one; `not_found` with its base name."""
    return word if word.startswith("s3://") else str(existing(word))


def existing(path: str | Path) -> Path:
    """The path, or `not_found` with its base name."""
    found = Path(path)
    if not found.exists():
        raise BadInputError(
            f"{found.name}: there is no such file or folder; check the path", code="not_found", status=404
        )
    return found
