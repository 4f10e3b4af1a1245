"""Circuit graphs: every edge runs between its nodes and is as wide as its score is large."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from pictures import MINUS, PLUS, ids, marks, parsed, styles

import lensbridge
from lensbridge.causal import Circuit, attribution_patch
from lensbridge.errors import InputError
from lensbridge.viz import CircuitGraph, GraphEdge, GraphNode

EDGES = [
    "input->a0.h1<v>",
    "a0.h1->m1",
    "a0.h1->a2.h3<q>",
    "input->m1",
    "m1->logits",
    "a2.h3->logits",
]


def svg_of(graph: CircuitGraph) -> ElementTree.Element:
    found = ElementTree.fromstring(graph.fragment()).find(".//svg")
    assert found is not None
    return found


def nodes_of(graph: CircuitGraph) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node."""
    found = {}
    for group in svg_of(graph).iter("g"):
        box = group.find("rect")
        assert box is not None
        x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        assert group.findtext("text") == group.attrib["data-name"]
        found[group.attrib["data-name"]] = (x, y, x + w, y + h)
    return found


def edges_of(graph: CircuitGraph) -> dict[str, ElementTree.Element]:
    return {path.findtext("title", ""): path for path in svg_of(graph).iter("path")}


@pytest.fixture(scope="module")
def result() -> Any:
    model = lensbridge.load("demo")
    clean = model.to_tokens("The Eiffel Tower is in the city of")
    corrupt = clean.clone()
    corrupt[0, 2] = model.to_single_token(" London")
    answer = model.to_single_token(" Paris")
    return attribution_patch(
        model, clean, corrupt, lambda logits: logits[:, -1, answer].sum(), granularity="edge"
    )


def test_each_edge_has_the_width_and_colour_of_its_score(result: Any) -> None:
    graph = result.plot_circuit(30)
    drawn = edges_of(graph)
    assert len(drawn) == 30
    largest = max(abs(score) for _, score in result.top(30))
    for text, score in result.top(30):
        told = f"{text}: {score:+.4g}".replace(" -", " \N{MINUS SIGN}")
        path = drawn[told]
        assert styles(path)["stroke"] == (MINUS if score < 0 else PLUS)
        share = (float(path.attrib["stroke-width"]) - 0.8) / 5.2
        assert share == pytest.approx(abs(score) / largest, abs=0.002)
    ranks = [int(path.attrib["data-rank"]) for path in drawn.values()]
    assert ranks == list(range(30))[::-1]  # the largest is drawn last, over the others
    strongest = next(path for told, path in drawn.items() if told.startswith(result.top(1)[0][0]))
    assert strongest.attrib["data-rank"] == "0"


def test_each_edge_runs_from_its_sender_up_to_its_receiver(result: Any) -> None:
    graph = result.plot_circuit(60)
    boxes, names = nodes_of(graph), [node.name for node in graph.nodes]
    for told, path in edges_of(graph).items():
        sender, receiver = told.partition(":")[0].split("->")
        receiver = receiver.partition("<")[0]
        assert names[int(path.attrib["data-from"])] == sender
        assert names[int(path.attrib["data-to"])] == receiver
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
        (x1, y1), (x2, y2) = numbers[:2], numbers[-2:]
        assert boxes[sender][0] < x1 < boxes[sender][2]
        assert boxes[receiver][0] <= x2 <= boxes[receiver][2]
        assert y1 == pytest.approx(boxes[sender][1], abs=0.1)
        assert y2 == pytest.approx(boxes[receiver][3], abs=0.1)
        assert y2 < y1


def test_layers_are_above_each_other_and_nodes_do_not_overlap(result: Any) -> None:
    boxes = nodes_of(result.plot_circuit(60))

    def level(name: str) -> tuple[float, ...]:
        found = re.match(r"([am])(\d+)", name)
        return (
            (float("inf" if name == "logits" else "-inf"),)
            if found is None
            else (int(found[2]), "am".index(found[1]))
        )

    order = sorted(boxes, key=level)
    tops = [boxes[name][1] for name in order]
    assert tops == sorted(tops, reverse=True)
    for one in boxes:
        for other in boxes:
            (a, b, c, d), (e, f, g, h) = boxes[one], boxes[other]
            assert one == other or c <= e or g <= a or d <= f or h <= b


def test_all_of_it_is_inside_the_picture(result: Any) -> None:
    graph = result.plot_circuit(100)
    wide, high = graph.layout.size
    for path in edges_of(graph).values():
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        for t in (0.25, 0.5, 0.75):  # de Casteljau, written out
            points = pairs
            while len(points) > 1:
                points = [
                    (p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]))
                    for p, q in pairwise(points)
                ]
            assert 0 <= points[0][0] <= wide
            assert 0 <= points[0][1] <= high


def test_a_circuit_without_scores_and_one_with_some() -> None:
    circuit = Circuit.of(EDGES)
    graph = circuit.plot()
    assert set(edges_of(graph)) == set(EDGES)
    assert {styles(path)["stroke"] for path in edges_of(graph).values()} == {"var(--lb-muted)"}
    assert set(nodes_of(graph)) == {"input", "a0.h1", "a2.h3", "m1", "logits"}
    some = edges_of(circuit.plot({"m1->logits": -2.0}))
    assert styles(some["m1->logits: \N{MINUS SIGN}2"])["stroke"] == MINUS
    assert "input->m1" in some


def test_nodes_alone_positions_and_other_stacks() -> None:
    boxes = nodes_of(Circuit.of(["a0.h1", "m0", "encoder.a3.h0", "r2@4", "s1"]).plot())
    assert set(boxes) == {"a0.h1", "m0", "encoder.a3.h0", "r2@4", "s1"}
    assert boxes["encoder.a3.h0"][1] > boxes["a0.h1"][1] > boxes["m0"][1] > boxes["r2@4"][1]
    at = Circuit.of(["a0.h1@3->a2.h3<q>@5"]).plot()
    assert set(nodes_of(at)) == {"a0.h1@3", "a2.h3@5"}


def test_many_heads_of_a_layer_take_several_rows() -> None:
    boxes = nodes_of(Circuit.of([f"a3.h{i}" for i in range(40)]).plot())
    assert len({round(box[1]) for box in boxes.values()}) == 4
    assert max(box[2] for box in boxes.values()) < 1000


def test_files_have_the_same_nodes(result: Any, tmp_path: Path) -> None:
    graph = result.plot_circuit(20)
    svg = graph.svg("light")
    assert {mark.tip for mark in marks(svg)} == {node.name for node in graph.nodes}
    widths = re.findall(
        rf"stroke: (?:{PLUS}|{MINUS}); stroke-opacity: 0.8; stroke-width: ([\d.]+)", svg
    )
    assert [float(width) for width in widths] == pytest.approx(
        sorted(graph.stroke(edge).width for edge in graph.edges), abs=1e-3
    )
    assert parsed(svg) is not None
    for suffix in (".html", ".svg", ".png", ".pdf"):
        assert graph.save(tmp_path / f"x{suffix}").stat().st_size > 1000


def test_a_circuit_is_saved_as_json_or_as_its_picture(tmp_path: Path) -> None:
    circuit = Circuit.of(EDGES)
    assert Circuit.load(circuit.save(tmp_path / "c.json")) == circuit
    assert circuit.save(tmp_path / "c.PNG").read_bytes().startswith(b"\x89PNG")
    assert "Mine" in circuit.save(tmp_path / "c.svg", title="Mine").read_text(encoding="utf-8")
    assert "data-lb-graph" in circuit._repr_html_()
    assert "No picture of all of it" in Circuit()._repr_html_()


def test_the_page_is_one_piece_that_fetches_nothing(result: Any) -> None:
    graph = result.plot_circuit(20, title="<b>&")
    page = ElementTree.fromstring(graph.html().partition("\n")[2])
    assert page.findtext("head/title") == "<b>&"
    assert not ids(graph.fragment())
    text = graph.html().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"http|<link|@import|url\(|src=", text)


def test_what_cannot_be_drawn_is_refused(result: Any) -> None:
    with pytest.raises(InputError, match="not 0 nodes"):
        Circuit().plot()
    with pytest.raises(InputError, match=r"501 edges\. Choose the largest"):
        Circuit.of([f"a0.h{i}->m1" for i in range(501)]).plot()
    with pytest.raises(InputError, match="not finite"):
        Circuit.of(EDGES).plot({"m1->logits": float("nan")})
    with pytest.raises(InputError, match="400 nodes"):
        CircuitGraph("", [GraphNode(str(i), 0) for i in range(401)], [], {})
    node = lensbridge.causal.attribution_patch(
        lensbridge.load("demo"), torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), lambda x: x.sum()
    )
    with pytest.raises(InputError, match="granularity='edge'"):
        node.plot_circuit()


def test_edges_of_ones_own() -> None:
    nodes = [GraphNode("below", 0), GraphNode("above <1>", 1, lane=1)]
    graph = CircuitGraph("", nodes, [GraphEdge(0, 1, "up", 1.0)], {0: "first", 1: "second"}, "nats")
    assert list(edges_of(graph)) == ["up: +1 nats"]
    assert repr(graph) == "CircuitGraph('', [node 2, edge 1])"
