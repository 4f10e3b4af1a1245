"""One verdict on several models."""


def summary(outcomes: dict[str, dict[str, str]]) -> dict[str, str]:
    """One verdict on several models: the worst one, and on which of them."""
    order = ("wrong", "error", "absent", "caveat", "works")
    groups: dict[str, list[str]] = {}
    for model, one in outcomes.items():
        groups.setdefault(one["kind"], []).append(model)
    worst = next(kind for kind in order if kind in groups)
    if len(groups) == 1 and len({one["note"] for one in outcomes.values()}) == 1:
        return {"kind": worst, "note": next(iter(outcomes.values()))["note"]}
    models = groups[worst]
    note = outcomes[_worst_of(models, outcomes)]["note"]
    everywhere = len(models) == len(outcomes)
    where = "" if everywhere else f"{', '.join(models)}: "
    best = "" if everywhere else f" ({len(outcomes) - len(models)} of {len(outcomes)} do better)"
    return {"kind": worst, "note": f"{where}{note}{best}"}


def _worst_of(models: list[str], outcomes: dict[str, dict[str, str]]) -> str:
    return max(models, key=lambda one: _size(outcomes[one]["note"]))


def _size(note: str) -> float:
    """The number in a note, so that the largest difference is the one that is told."""
    words = [word.rstrip("%:;,") for word in note.split()]
    sizes = [0.0]
    for word, raw in zip(words, note.split(), strict=True):
        try:
            sizes.append(float(word) / (100 if "%" in raw else 1))
        except ValueError:
            continue
    return max(sizes)
