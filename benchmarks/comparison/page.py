"""docs/comparison.md out of docs/comparison.json: nothing here measures or claims."""

from typing import Any

from benchmarks.comparison.summaries import summary

TOOLS = ("lensbridge", "TransformerLens", "nnsight", "nnterp", "pyvene")
ALL = (*TOOLS, "circuit-tracer")
WORDS = {
    "works": "yes",
    "caveat": "yes, but",
    "wrong": "**wrong**",
    "error": "**error**",
    "absent": "-",
}

HEAD = """\
# Compared with other tools

<!-- Written by benchmarks/comparison from docs/comparison.json. Run: make comparison -->

lensbridge beside TransformerLens, nnsight, nnterp, pyvene and circuit-tracer. Each cell is the
outcome of code that ran: the cases are in `benchmarks/comparison/cases`, the uses of each tool in
`benchmarks/comparison/tools` and `probes`, and `make comparison` runs all of it again. vllm-lens
asks for an environment of its own: [vLLM](how-to/vllm.md#beside-vllm-lens) has what its
documentation says.

- **yes**: it gives what the bare HuggingFace model gives under plain PyTorch hooks.
- **yes, but**: the same, under the condition that stands there.
- **wrong**: another result, with the largest difference as a share of the largest value.
- **error**: it raised; its message stands there.
- **-**: the tool offers no call for it.
"""


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD, _behind(found), _versions(found), _features(found), _cases(found)]
    return "\n".join([*parts, _coverage(found), _costs(found), _speed(found)])


def _behind(found: dict[str, Any]) -> str:
    lines = ["## Where lensbridge is behind", ""]
    titles, features = found["features"]["titles"], found["features"]["outcomes"]
    good = ("works", "caveat")
    for key, title in titles.items():
        better = [one for one in ALL if one in features and features[one][key]["kind"] in good]
        if "lensbridge" in features and "lensbridge" not in better and better:
            lines.append(
                f"- {title}: {', '.join(better)} {'has' if len(better) == 1 else 'have'} it."
            )
    for key, about in found["cases"]["titles"].items():
        ours = summary(found["cases"]["outcomes"]["lensbridge"][key])
        if ours["kind"] != "works":
            lines.append(f"- {about}: {WORDS[ours['kind']]} {ours['note']}.")
    for work, one in found.get("speed", {}).get("works", {}).items():
        mine = one["ratios"].get("lensbridge")
        title = found["speed"]["titles"][work]
        faster = [name for name, other in one["ratios"].items() if mine and other[2] < mine[0]]
        if faster:
            lines.append(f"- {title}: {', '.join(faster)} take less time.")
    lines += _dearer(found)
    lines.append("- It is new; the others have years of use, papers and notebooks behind them.")
    return "\n".join([*lines, ""])


def _dearer(found: dict[str, Any]) -> list[str]:
    costs, mine = found["costs"], found["costs"]["lensbridge"]
    fewer = [one for one in ALL if one in costs and costs[one]["bytes"] < mine["bytes"]]
    return [f"- Size on disk: {', '.join(fewer)} bring less."] if fewer else []


def _versions(found: dict[str, Any]) -> str:
    lines = [
        "## Environments",
        "",
        "| tool | version | runs here with | asks for |",
        "|---|---|---|---|",
    ]
    for tool in ALL:
        if tool in found["costs"]:
            one = found["costs"][tool]
            beside = ", ".join(f"{name} {number}" for name, number in one["with"].items())
            lines.append(f"| {tool} | {one['version']} | {beside} | {', '.join(one['pins'])} |")
    return "\n".join([*lines, "", found["apart"], ""])


def _features(found: dict[str, Any]) -> str:
    lines = [
        "## What each tool has a call for",
        "",
        "Each cell is a call on a tiny model. Where a tool has no probe, its source was searched",
        "for public names that match; what was found and not tried stands there.",
        "",
        *_head("", *ALL),
    ]
    outcomes = found["features"]["outcomes"]
    for key, title in found["features"]["titles"].items():
        cells = [_cell(outcomes[tool][key]) if tool in outcomes else "" for tool in ALL]
        lines.append(_row(title, *cells))
    return "\n".join([*lines, ""])


def _cases(found: dict[str, Any]) -> str:
    cases = found["cases"]
    lines = [
        "## Correctness",
        "",
        "Each case ran on tiny random models of these families, and a cell is the worst of them:",
        f"{', '.join(cases['families'])}. Models have the sdpa attention that they load",
        "with, but for Gemma 2, which has eager attention.",
        "",
        *_head("", *TOOLS),
    ]
    for key, title in cases["titles"].items():
        cells = [_worst(cases["outcomes"].get(tool, {}).get(key)) for tool in TOOLS]
        lines.append(_row(title, *cells))
    return "\n".join([*lines, ""])


def _coverage(found: dict[str, Any]) -> str:
    if "coverage" not in found:
        return ""
    one = found["coverage"]["recorded"]
    sample = one["sample"]
    lines = [
        "## Model types",
        "",
        f"Of {one['types']} model types of transformers, {one['lensbridge']} pass the checks",
        f"of lensbridge ([coverage](coverage.md)). Of the {one['tried']} of them",
        f"that read token ids alone {one['lensbridge_of_tried']} do; TransformerLens gives the",
        "model's logits for",
        f"{one['TransformerLens']}, and for {one['TransformerLens_patterns']} of those",
        "an edited pattern changes them.",
        "",
        f"On a sample of {len(sample)} causal language models, spread over the alphabet:",
        "*named*: the tool has its own name for a layer's output, and an edit there changes the",
        "logits; *opened*: the tool runs the model, and the user may have to write module paths.",
        "",
        *_head("", "named", "opened", "other"),
        _row("lensbridge", *_tally([about["lensbridge"] for about in sample.values()])),
        _row("TransformerLens", *_tally([_of_bridge(about) for about in sample.values()])),
    ]
    for tool, types in found["coverage"]["sample"].items():
        lines.append(_row(tool, *_tally(list(types.values()))))
    return "\n".join([*lines, ""])


def _of_bridge(about: dict[str, str]) -> str:
    return "named" if about["TransformerLens"].startswith("runs") else "refused"


def _tally(found: list[str]) -> tuple[str, str, str]:
    named, opened = found.count("named"), found.count("opens, no names")
    return str(named), str(named + opened), str(len(found) - named - opened)


def _costs(found: dict[str, Any]) -> str:
    lines = [
        "## Installation and import",
        "",
        "What `pip install` brings beyond torch and transformers, and processor time of the import",
        "that a user needs before there is a model, as a multiple of `import torch, transformers`.",
        "",
        *_head("", "other packages", "size on disk", "import"),
    ]
    for tool in ALL:
        if tool in found["costs"]:
            one = found["costs"][tool]
            times = found.get("imports", {}).get(tool)
            took = f"{times['seconds'] / times['base']:.2f}x" if times else ""
            lines.append(
                _row(tool, str(len(one["packages"])), f"{one['bytes'] / 1e6:.1f} MB", took)
            )
    return "\n".join([*lines, ""])


def _speed(found: dict[str, Any]) -> str:
    if "speed" not in found:
        return ""
    speed = found["speed"]
    lines = [
        "## Time and memory",
        "",
        "Processor time as a multiple of the bare model's with PyTorch hooks that do the same: the",
        "median over rounds and its 95% interval. GPT-2's shape with random weights, 15 tokens,",
        "one thread, all tools of an environment in one process, in turn. Results are",
        "checked first.",
        "",
        *_head("", "bare model", *TOOLS),
    ]
    for work, one in speed["works"].items():
        cells = [_ratio(one, tool) for tool in TOOLS]
        lines.append(_row(speed["titles"][work], f"{one['seconds'] * 1e3:.0f} ms", *cells))
    lines += ["", "Peak memory above what the process had before, in MB, for 8 x 128 tokens:", ""]
    lines += _head("", "bare model", *TOOLS)
    for work, tools in speed["memory"].items():
        cells = [
            "" if tools.get(one) is None else f"{tools[one] / 1e6:.0f}" for one in ("bare", *TOOLS)
        ]
        lines.append(_row(speed["titles"][work], *cells))
    lines += ["", f"Measured {speed['when']}, load of the machine {speed['load']:.1f}.", ""]
    return "\n".join(lines)


def _ratio(one: dict[str, Any], tool: str) -> str:
    if tool in one["ratios"]:
        low, middle, high = one["ratios"][tool]
        return f"{middle:.2f}x ({low:.2f} to {high:.2f})"
    return one["missing"].get(tool, "").replace("|", "/")


def _worst(outcomes: dict[str, dict[str, str]] | None) -> str:
    return "" if outcomes is None else _cell(summary(outcomes))


def _cell(outcome: dict[str, str]) -> str:
    note = outcome["note"].replace("|", "/").replace("\n", " ").replace("<", "&lt;")
    word = WORDS[outcome["kind"]]
    return f"{word}: {note}" if note else word


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> list[str]:
    """The first two lines of a table."""
    return [_row(*cells), _row(*["---"] * len(cells))]
