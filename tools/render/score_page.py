"""report.html of a scored split: the headline figures, tables and pictures of an `EvalResult`."""

from collections.abc import Sequence

from tools.evaluate.metrics import PER_CLASS, by_combination
from tools.evaluate.result import EvalResult, class_rows, overall_rows, percent
from tools.render.page import Picture, Pictures, Table, Text, render

MOST_SETS = 50  # rows of the table of label sets


def score_page(
    result: EvalResult,
    labels: Sequence[str],
    *,
    title: str,
    facts: Sequence[tuple[str, object]],
    pictures: Sequence[bytes],
    mistakes: Sequence[Picture],
    abstaining: dict | None,
) -> str:
    """The page as HTML.

    Args:
        facts: (what, value) of the checkpoint and the split.
        pictures: PNGs, in order.
        mistakes: the worst ones, most confident first.
        abstaining: result of `EvalResult.abstaining`, if requested.
    """
    lead = (
        f"{result.scores['photos']} photos, {result.scores['copies']} label copies. Shares in per cent; "
        "in brackets the 95 % interval of 1,000 bootstrap draws over photos."
    )
    how = (
        "Temperatures and thresholds for each half of these photos were chosen on the other half."
        if result.cross_fitted
        else "Temperatures and thresholds were chosen on the validation photos."
    )
    errors = result.calibration()
    how += f" Calibration error {percent(errors['before'])} before and {percent(errors['after'])} after calibration."
    notes = [how, describe_abstaining(abstaining)] if abstaining else [how]
    headline = [row[:3] for row in overall_rows(result.scores, result.bounds, ("exact", "hit1", "macro_f1"))]
    rows = overall_rows(result.scores, result.bounds)
    overall = [((name, remark) if remark else name, value, interval) for name, value, interval, remark in rows]
    worst = Pictures(mistakes) if mistakes else Text("None: every photo was decided exactly right.")
    sections: dict[str, list] = {
        "All photos": [Table(("figure", "value", "interval"), overall), *map(Text, notes)],
        "Class by class": [_class_table(result, labels)],
        "By true label set": [_set_table(result, labels)],
        "Pictures": [Pictures([Picture(data) for data in pictures], large=True)],
        "The worst mistakes": [worst],
        "What was scored": [Table(("", ""), facts, text=(0, 1))],
    }
    return render(title, lead, sections, headline)


def _class_table(result: EvalResult, labels: Sequence[str]) -> Table:
    """One row per class: every figure with its interval under it."""
    rows = [
        (label, photos, *(tuple(cell.split(" ", 1)) if " " in cell else cell for cell in cells))
        for label, photos, *cells in class_rows(result.scores, result.bounds, labels)
    ]
    return Table(("label", "photos", *(metric.title for metric in PER_CLASS.values())), rows)


def _set_table(result: EvalResult, labels: Sequence[str]) -> Table:
    """One row per set of true labels; of many, the most frequent."""
    sets = by_combination(result.decision, result.truth)
    rows = [
        (" + ".join(labels[c] for c in members), photos, right, percent(right / photos))
        for members, photos, right in sets[:MOST_SETS]
    ]
    note = f"and {len(sets) - MOST_SETS} rarer label sets" if len(sets) > MOST_SETS else ""
    return Table(("labels", "photos", "exactly right", "share"), rows, note)


def describe_abstaining(abstaining: dict) -> str:
    """One sentence on coverage and error when only confident photos are answered."""
    risk = f"{100 * abstaining['risk']:.1f} %"
    if abstaining["cut"] is None:
        return f"No confidence keeps the validation error at {risk}: nothing would be answered."
    error = "-" if abstaining["error"] is None else f"{100 * abstaining['error']:.2f} %"
    return (
        f"Answering only at confidence {abstaining['cut']:.3f} or more (chosen for an error of at most {risk} in "
        f"validation): {100 * abstaining['coverage']:.1f} % of these photos are answered, and {error} of the answers "
        "are wrong."
    )
