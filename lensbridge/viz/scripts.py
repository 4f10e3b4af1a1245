"""Scripts and style rules of interactive pictures, as parts of a page."""

from functools import cache
from importlib.resources import files

from lensbridge.viz.markup import Html


@cache
def style(name: str) -> str:
    """The style rules of a file of this package, without indentation."""
    lines = files("lensbridge.viz").joinpath(name).read_text(encoding="utf-8").splitlines()
    return "".join(line.strip() for line in lines)


@cache
def script(name: str) -> Html:
    """A script of this package as an element that is well-formed XML too."""
    lines = files("lensbridge.viz").joinpath(name).read_text(encoding="utf-8").splitlines()
    kept = [line.strip() for line in lines if not line.strip().startswith("//")]
    return Html("<script>//<![CDATA[\n" + "\n".join(filter(None, kept)) + "\n//]]></script>")
