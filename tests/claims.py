"""Cells of the tables of claims, and cards that lie."""

from layers.catalog import Stone, stone


def cells(rows):
    return {(row.property, row.carrier): row.holds for row in rows}


def lying(tmp_path, name, was, becomes):
    """The stone ``name`` with one passage of its card changed; the layer stays the real one."""
    honest = stone(name)
    text = honest.path.read_text(encoding="utf-8")
    assert text.count(was) == 1
    path = tmp_path / honest.path.name
    path.write_text(text.replace(was, becomes), encoding="utf-8")
    return Stone(honest.name, honest.kind, path)


def failed(rows):
    """The properties of the cells that are not as claimed."""
    return {row.property for row in rows if row.verdict == "failed"}
