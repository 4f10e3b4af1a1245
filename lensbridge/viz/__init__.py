"""Pictures as self-contained HTML and inline SVG: no scripts, nothing fetched, no torch.

`Heatmap` and `Curve` draw numbers; `report` lays pictures, tables and text out on one page that
adapts to light and dark screens and to phones.
"""

from lensbridge.viz.curve import Curve
from lensbridge.viz.heatmap import Heatmap, Scale
from lensbridge.viz.markup import Html

__all__ = ["Curve", "Heatmap", "Html", "Scale"]
