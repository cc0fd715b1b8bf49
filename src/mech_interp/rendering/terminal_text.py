"""Text fitted to terminal cells, of which wide characters take two."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def cut(text: str, width: int) -> str:
    """The text in at most `width` cells, an ellipsis where it was cut."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 0 else ""


def left(text: str, width: int) -> str:
    """Cut and padded on the right."""
    fitted = cut(text, width)
    return fitted + " " * (width - cell_len(fitted))


def right(text: str, width: int) -> str:
    """Cut and padded on the left."""
    fitted = cut(text, width)
    return " " * (width - cell_len(fitted)) + fitted


def middle(text: str, width: int) -> str:
    """Cut and padded on both sides."""
    fitted = cut(text, width)
    spare = width - cell_len(fitted)
    return " " * (spare // 2) + fitted + " " * (spare - spare // 2)


def widest(texts: list[str]) -> int:
    """Cells of the widest text; 0 for none."""
    return max((cell_len(text) for text in texts), default=0)
