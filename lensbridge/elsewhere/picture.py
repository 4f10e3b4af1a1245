"""Names that are looked for on results and pictures."""

from lensbridge.elsewhere.hinted import Instead, Table, entries

_SHOW: Instead = [
    ("result.plot()", "is the picture, which shows itself as the last line of a notebook cell"),
    ("result.plot().save(path)", "writes it to .html, .svg, .png or .pdf"),
]
_TABLE: Instead = [("result.to_dataframe()", "is a pandas.DataFrame")]

RESULT: Table = {
    **entries(("show", "display", "draw", "visualize", "heatmap", "imshow"), _SHOW),
    **entries(("to_html", "html", "savefig", "to_svg", "to_png"), _SHOW[1:]),
    **entries(("to_pandas", "to_df", "df", "dataframe", "table", "frame"), _TABLE),
    "to_csv": [("result.to_dataframe().to_csv(path)", "writes a table")],
}
"""What to write for names of results of other libraries."""

_FILE: Instead = [("picture.save(path)", "writes it to .html, .svg, .png or .pdf")]

PICTURE: Table = {
    **entries(
        ("show", "display", "view"),
        [("picture", "shows itself as the last line of a notebook cell"), *_FILE],
    ),
    **entries(("savefig", "write_html", "write_image", "to_html", "to_png"), _FILE),
    **entries(
        ("fig", "ax", "axes_", "axis", "matplotlib", "gcf"),
        [("picture.to_matplotlib()", "is a figure of matplotlib")],
    ),
    **entries(
        ("plotly", "update_layout", "iplot"), [("picture.to_plotly()", "is a figure of plotly")]
    ),
}
"""What to write for names of figures of matplotlib and plotly."""
