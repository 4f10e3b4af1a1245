"""What a notebook shows of a picture that it does not trust: a still image.

JupyterLab takes SVG, style rules and scripts out of a notebook that was not run here, and leaves
the texts of the SVG as words in a row. So a notebook gets both: the picture itself, which only a
style rule makes visible, and an image, which that rule hides.
"""

import re
from base64 import b64encode

from lensbridge.viz.markup import Html, element, plain
from lensbridge.viz.theme import LIGHT, NAMES, variable

_RULES = ".lb-live{display:block!important}.lb-still{display:none!important}"
_TAG = re.compile(r"<[^>]*>")


def with_still(live: Html, svg: Html, title: str) -> Html:
    """A picture with an image in its place where style rules are taken out.

    Args:
        live: the picture for a page.
        svg: the same as SVG.
        title: said of the image to those who cannot see it.
    """
    width = re.search(r' width="([\d.]+)"', svg)
    size = f' width="{width[1]}"' if width else ""
    image = Html(
        f'<img class="lb-still" src="{_uri(svg)}" alt="{plain(title)}"{size} '
        'style="max-width:100%"/>'
    )
    hidden = element("div", live, class_="lb-live", style="display:none")
    return element("div", element("style", Html(_RULES)), hidden, image)


def _uri(svg: Html) -> str:
    light = _TAG.sub(lambda found: _in_light(found[0]), svg)
    light = light.replace('style="', f'style="background:{LIGHT.paper};', 1)
    return "data:image/svg+xml;base64," + b64encode(light.encode()).decode("ascii")


def _in_light(tag: str) -> str:
    """A tag with the colours of the light theme in place of the variables."""
    for name in NAMES:
        tag = tag.replace(f"var({variable(name)})", getattr(LIGHT, name))
    return tag
