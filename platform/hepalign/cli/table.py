"""Rows for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

# As wide as an evaluation's table is: a folded name can be neither searched for nor copied.
WIDTH = 200


def render(rows: Sequence[Mapping[str, object]]) -> str:
    """A plain table with one column a key of the first row; nothing is cut off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out = io.StringIO()
    Console(file=out, width=WIDTH, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
