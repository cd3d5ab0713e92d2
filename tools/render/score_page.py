"""report.html of a scored split: the tables and pictures of a `EvalResult` on one page."""

from collections.abc import Sequence

from tools.evaluate.metrics import PER_CLASS, by_combination
from tools.evaluate.result import EvalResult, class_rows, overall_rows, percent
from tools.render.page import Picture, Pictures, Section, Table, Text, render


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
    """The page.

    Args:
        facts: (what, value) of the checkpoint and the split.
        pictures: PNGs, in order.
        mistakes: the worst ones, most confident first.
        abstaining: of `EvalResult.abstaining`, when it was asked for.
    """
    lead = (
        f"{result.scores['photos']} photos, {result.scores['copies']} copies. Shares in per cent; "
        "in brackets the 95 % interval of 1,000 bootstrap draws over photos."
    )
    how = (
        "Temperatures and thresholds were chosen on these very photos, each half's on the other half."
        if result.cross_fitted
        else "Temperatures and thresholds were chosen on the validation photos."
    )
    errors = result.calibration()
    calibration = (
        f"Calibration error {percent(errors['before'])} before and {percent(errors['after'])} after calibration."
    )
    rows = overall_rows(result.scores, result.bounds)
    overall = [Table(("figure", "value", "interval", "remark"), rows, text=(0, 3)), Text(f"{how} {calibration}")]
    if abstaining:
        overall.append(Text(describe_abstaining(abstaining)))
    classes = Table(
        ("label", "photos", *(_HEADS[key] for key in PER_CLASS)), class_rows(result.scores, result.bounds, labels)
    )
    sets = [
        (" + ".join(labels[c] for c in members), photos, right, percent(right / photos))
        for members, photos, right in by_combination(result.decision, result.truth)
    ]
    sections = [
        Section("All photos", overall),
        Section("Class by class", [classes]),
        Section("By true label set", [Table(("labels", "photos", "exactly right", "share"), sets)]),
        Section("Pictures", [Pictures([Picture(data) for data in pictures], width=500)]),
        Section(
            "The worst mistakes",
            [Pictures(mistakes, width=168)] if mistakes else [Text("None: every photo was decided exactly right.")],
        ),
        Section("What was scored", [Table(("", ""), list(facts), text=(0, 1))]),
    ]
    return render(title, lead, sections)


def describe_abstaining(abstaining: dict) -> str:
    """One sentence on what answering only the confident photos would bring."""
    risk = f"{100 * abstaining['risk']:.1f} %"
    if abstaining["cut"] is None:
        return f"No confidence keeps the validation error at {risk}: nothing would be answered."
    error = "-" if abstaining["error"] is None else f"{100 * abstaining['error']:.2f} %"
    return (
        f"Answering only from confidence {abstaining['cut']:.3f} on (chosen for an error of at most {risk} in "
        f"validation): {100 * abstaining['coverage']:.1f} % of these photos are answered, and {error} of the answers "
        "are wrong."
    )


_HEADS = {
    "accuracy": "copies right",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ap": "average precision",
    "auc": "ROC AUC",
}
