"""Tables and code in Markdown."""


def row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def header(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*titles), "|---" * len(titles) + "|"]


def code(text: str) -> str:
    """Text as code."""
    return f"`{text}`"
