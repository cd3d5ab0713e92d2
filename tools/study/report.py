"""The results of a study: a table, a CSV file, a figure, and a verdict per arm."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from configs.keys import FIGURES
from tools.base.errors import DataError
from tools.base.files import read_regular, write_bytes
from tools.base.tables import format_csv, format_table
from tools.evaluate.metrics import OVERALL, measure_draws, score
from tools.evaluate.predictions import PredictionTable, fit_to, read_predictions
from tools.evaluate.result import signed
from tools.render.figures import draw_study
from tools.study.plan import PlannedRun, Study, counted
from tools.study.runs import is_scored, scores_of
from tools.study.statistics import LEVEL, MOST_SEEDS, Comparison, compare_with_first
from tools.train.history import HISTORY, read_history

EQUAL_WITHIN = 1.0  # points: arms whose interval lies inside are called equal


@dataclass(frozen=True)
class ArmResult:
    """The scored runs of an arm; R of them.

    Attributes:
        scores: `[R, F]`, each of `FIGURES` in percent.
        draws: `[R, B]`, the figure that decides on bootstrap draws of the photos, in percent.
        minutes: training time of a run, without validation and scoring, the mean over runs.
        machines: what the runs were trained on.
    """

    name: str
    scores: np.ndarray
    draws: np.ndarray
    minutes: float
    machines: list[str]

    @property
    def deviation(self) -> np.ndarray:
        """`[F]`, the standard deviation of each figure over the runs; NaN for a single run."""
        return self.scores.std(axis=0, ddof=1) if len(self.scores) > 1 else np.full(len(FIGURES), np.nan)


class Verdict(NamedTuple):
    """`kind` is baseline, better, worse, equal or "cannot tell"."""

    kind: str
    sentence: str


def write_report(study: Study) -> str:
    """Writes report.txt, results.csv and study.png into the study's folder, and returns the text.

    Raises:
        DataError: when the baseline has no scored run, or no other arm has one.
    """
    arms, num_photos = read_results(study)
    at = FIGURES.index(study.by)
    values = [arm.scores[:, at] for arm in arms]
    found = compare_with_first(values, [arm.draws for arm in arms], smallest=100 / num_photos)
    verdicts = [Verdict("baseline", f"{arms[0].name} is the baseline")]
    verdicts += [judge(arm.name, each, study.unit) for arm, each in zip(arms[1:], found, strict=True)]
    text = _to_text(study, arms, found, verdicts, num_photos)
    write_bytes(study.folder / "report.txt", text.encode())
    write_bytes(study.folder / "results.csv", _to_csv(arms, found, verdicts))
    limits = [(each.difference, each.low, each.high) for each in found]
    picture = draw_study(
        [arm.name for arm in arms], values, limits, [verdict.kind for verdict in verdicts], OVERALL[study.by].title
    )
    write_bytes(study.folder / "study.png", picture)
    return text


def read_results(study: Study) -> tuple[list[ArmResult], int]:
    """The arms that have scored runs, the baseline first, and the number of photos."""
    known: PredictionTable | None = None
    found = []
    for name in study.arms:
        runs = [run for run in study.runs if run.arm == name and is_scored(run, study.split)]
        if not runs:
            continue
        scores, draws = [], []
        for run in runs:
            path = scores_of(run, study.split) / "predictions.csv"
            table = read_predictions(path)
            known = known or table
            table = fit_to(known, str(path), table)
            figures = score(*table.answers())
            scores.append([100 * figures[key] for key in FIGURES])
            draws.append(100 * measure_draws(*table.answers())[study.by])
        minutes = float(np.mean([training_minutes(run) for run in runs]))
        machines = sorted({machine_of(run) for run in runs})
        found.append(ArmResult(name, np.array(scores), np.array(draws), minutes, machines))
    if len(found) < 2 or found[0].name != study.arms[0] or known is None:
        raise DataError(
            f"{study.folder}: a table needs a scored run of the baseline {study.arms[0]!r} and one of another arm; "
            "start the study without --report"
        )
    return found, len(known.images)


def training_minutes(run: PlannedRun) -> float:
    """Epochs times the median epoch: an epoch that was interrupted is recorded in part only."""
    seconds = [float(row["seconds"]) for row in read_history(run.folder / HISTORY)]
    return len(seconds) * median(seconds) / 60 if seconds else 0.0


def machine_of(run: PlannedRun) -> str:
    """What the run was trained on, as its run.json says."""
    try:
        return str(json.loads(read_regular(run.folder / "run.json", "record", 1_000_000))["machine"])
    except (DataError, ValueError, KeyError, TypeError):
        return "unknown machine"


def judge(arm: str, found: Comparison, unit: str = "seed") -> Verdict:
    """What a comparison says, in words."""
    figures = signed(found.difference, (found.low, found.high), digits=1)
    if found.p_holm is None:
        return Verdict("cannot tell", f"{arm}: cannot tell from one {unit} per arm: {figures} over photos alone")
    if found.p_holm <= LEVEL:
        kind = "better" if found.difference > 0 else "worse"
        return Verdict(kind, f"{arm} is {kind}: {figures}")
    if max(-found.low, found.high) < EQUAL_WITHIN:
        return Verdict("equal", f"{arm} is equal within {EQUAL_WITHIN:g} point: {figures}")
    more = f"even {MOST_SEEDS} more {unit}s would not"
    if found.more:
        more = f"{counted(found.more, f'more {unit}')} would"
    return Verdict("cannot tell", f"{arm}: cannot tell: {figures}; {more}")


def _to_text(
    study: Study, arms: Sequence[ArmResult], found: Sequence[Comparison], verdicts: Sequence[Verdict], num_photos: int
) -> str:
    at = FIGURES.index(study.by)
    rows = [("arm", f"{study.unit}s", f"{study.by} %", "difference", "p (Holm)", "minutes")]
    for arm, each in zip(arms, [None, *found], strict=True):
        count, spread = len(arm.scores), arm.deviation[at]
        mean = f"{arm.scores[:, at].mean():.2f}" + (f" ± {spread:.2f}" if count > 1 else "")
        against = signed(each.difference, (each.low, each.high)) if each else "-"
        p = "-" if each is None or each.p_holm is None else f"{each.p_holm:.3f}"
        rows.append((arm.name, str(count), mean, against, p, f"{arm.minutes:.1f}"))
    done = sum(len(arm.scores) for arm in arms)
    machines = sorted({machine for arm in arms for machine in arm.machines})
    lines = [
        f"{done} of {len(study.runs)} runs on {num_photos} {study.split} photos; ± standard deviation of {study.unit}s",
        f"difference to {arms[0].name} in points, with its 95 % interval; minutes of training per run",
        f"trained on {'; '.join(machines)}",
        "",
        *format_table(rows, "<>>>>>"),
        "",
        *(verdict.sentence for verdict in verdicts),
    ]
    return "\n".join(lines) + "\n"


def _to_csv(arms: Sequence[ArmResult], found: Sequence[Comparison], verdicts: Sequence[Verdict]) -> bytes:
    of_runs = [name for key in FIGURES for name in (f"{key}_mean", f"{key}_sd")]
    numbers = ("difference", "low", "high", "p", "p_holm")
    rows: list[list[object]] = [["arm", "runs", *of_runs, *numbers, "minutes", "machine", "verdict"]]
    for arm, each, verdict in zip(arms, [None, *found], verdicts, strict=True):
        scores = np.stack([arm.scores.mean(axis=0), arm.deviation], axis=1).ravel().tolist()  # in the order of of_runs
        values = [*scores, *(getattr(each, name, None) for name in numbers), arm.minutes]
        shown = ["" if value is None or np.isnan(value) else f"{value:.4f}" for value in values]
        rows.append([arm.name, len(arm.scores), *shown, "; ".join(arm.machines), verdict.sentence])
    return format_csv(rows)
