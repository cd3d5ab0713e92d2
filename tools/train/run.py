"""A training run: epochs of training and validation, what is logged, what is saved, and how it ends."""

import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from tools.base.errors import CheckpointError, Interrupted, ResourceError
from tools.base.files import write_bytes
from tools.checkpoint import store
from tools.evaluate.calibration import fit
from tools.evaluate.inference import predict
from tools.evaluate.metrics import score
from tools.evaluate.rule import DecisionRule
from tools.render.figures import draw_curves
from tools.runtime.distributed import Ranks, on_first_rank, share_weights
from tools.runtime.memory import peak_memory
from tools.runtime.signals import Requests, UpdateDropped, requests
from tools.train.history import FIELDS, HISTORY, add_row
from tools.train.loop import Progress, Update, train_one_epoch, validation_loss
from tools.train.losses import CRITERIA
from tools.train.optim import restore_state
from tools.train.step import StepContext

STATUS = "status.json"


@dataclass(frozen=True)
class Plan:
    """How epochs are cut into updates.

    Attributes:
        num_batches: batches of an epoch, on every rank.
        accumulation: batches of an update; the epoch's last update may have fewer.
        images_per_update: over all ranks and accumulated batches.
        save_every: updates between writings of last.pth inside an epoch; 0 for none.
        save_minutes: minutes between them; 0 for none.
        stop_after: updates after which to stop with everything saved; 0 for none.
        grace_seconds: how long an update may still take after a signal before it is dropped; 0 for ever.
    """

    epochs: int
    num_batches: int
    accumulation: int
    images_per_update: int
    save_freq: int = 1
    save_every: int = 0
    save_minutes: float = 0.0
    stop_after: int = 0
    grace_seconds: float = 0.0

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return math.ceil(self.num_batches / self.accumulation)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.updates

    @property
    def last_step(self) -> int:
        """Updates after which this call is done."""
        return min(self.total_steps, self.stop_after or self.total_steps)


@dataclass
class TrainState:
    """What training moves: the model, its optimizer, its precision's scaler, and `ema`, its average or None."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    precision: object
    ema: object | None = None

    def inference_model(self) -> nn.Module:
        """The weights that are validated, selected and tested."""
        return self.ema.module if self.ema is not None else self.module

    def state(self) -> dict:
        """Everything to go on from."""
        return {
            "model": self.module.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
        }

    def restore(self, stored: dict, load_weights: Callable[[nn.Module, dict, str], None], where: str) -> None:
        """The inverse of `state`. Raises CheckpointError for a state that does not fit."""
        if bool(stored["model_ema"]) != (self.ema is not None):
            raise CheckpointError(f"{where} was made with another TRAIN.EMA_DECAY")
        load_weights(self.module, stored["model"], where)
        if self.ema is not None:
            load_weights(self.ema.module, stored["model_ema"], where)
        restore_state(self.optimizer, stored["optimizer"], where, moved=stored["step"] > stored["skipped"])
        self.precision.load_state_dict(stored["scaler"])


@dataclass
class Run:
    """A run on one rank. Only the first rank writes files.

    Attributes:
        command: what a user types to go on with it.
        meta: what every checkpoint says besides weights and progress (config, classes, preprocess, ...).
        rule: how photos are given labels before anything is fitted; validation scores use it as it is.
        fitted: what the last validation says of calibration and decisions, for the checkpoints.
        train_batches: (epoch, batches to skip) -> what is left of this rank's batches of the epoch.
        val_batches: () -> this rank's validation batches.
        select: the validation score that chooses best.pth.
    """

    folder: Path
    command: str
    logger: logging.Logger
    ranks: Ranks
    plan: Plan
    schedule: Callable[[int], float]
    train_state: TrainState
    context: StepContext
    progress: Progress
    meta: dict
    rule: DecisionRule
    fitted: dict
    num_classes: int
    select: str
    train_batches: Callable[[int, int], Iterable]
    val_batches: Callable[[], Iterable]
    print_freq: int
    snapshots: list[int]
    _status: dict = field(default_factory=dict, init=False)
    _began_in: os.stat_result | None = field(default=None, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def fit(self) -> None:
        """Trains to the end of the plan, or to its `stop_after`.

        Raises:
            Interrupted: after a signal, when last.pth is written.
        """
        begun = started = time.monotonic()
        plan, progress = self.plan, self.progress
        self._began_in = self.folder.stat() if self.ranks.first else None
        with requests(plan.grace_seconds) as asked:
            while True:
                if progress.validated < progress.step // plan.updates:
                    self._finish_epoch(asked, time.monotonic() - started)
                if progress.step >= plan.last_step:
                    break
                started = time.monotonic()
                self._train_to_the_end_of_the_epoch(asked)
        done = progress.step >= plan.total_steps
        if not done:
            self.logger.info(f"stopped at step {progress.step} of {plan.total_steps} as TRAIN.MAX_STEPS asked")
        if progress.best >= 0:
            self.logger.info(f"Max {self.select}: {100 * progress.best:.2f}%")
        self.logger.info(f"Training time {_clock(time.monotonic() - begun)}")
        self._write_status("finished" if done else "stopped")

    def _train_to_the_end_of_the_epoch(self, asked: Requests) -> None:
        """The updates from where progress stands; fewer when MAX_STEPS ends the run inside the epoch."""
        plan, progress = self.plan, self.progress
        epoch, first = divmod(progress.step, plan.updates)
        if first == 0:
            progress.sums = [0.0] * 4
        updates = train_one_epoch(
            self.context,
            self.train_batches(epoch, first * plan.accumulation),
            progress,
            num_batches=plan.num_batches,
            accumulation=plan.accumulation,
            schedule=self.schedule,
            asked=asked,
        )
        bar = tqdm(
            total=plan.updates,
            initial=first,
            desc=f"epoch {epoch}",
            leave=False,
            disable=not self.ranks.first or not _on_terminal(),
        )
        started = time.monotonic()
        with bar, self._ended_by(asked, epoch):
            for update in updates:
                if self.train_state.ema is not None:
                    self.train_state.ema.update(self.train_state.module, step=progress.step)
                bar.update()
                done = progress.step - epoch * plan.updates
                if (done - 1) % self.print_freq == 0 or done == plan.updates:
                    with on_first_rank(self.ranks):
                        self._log_update(epoch, done, update, (time.monotonic() - started) / (done - first))
                self._answer(asked, epoch)
                if progress.step == plan.last_step:
                    break
        self.logger.info(f"EPOCH {epoch} training takes {_clock(time.monotonic() - started)}")

    def _answer(self, asked: Requests, epoch: int) -> None:
        """Between two updates: saves when it is time to, and leaves when a signal asked for it."""
        plan, step = self.plan, self.progress.step
        minutes = (time.monotonic() - self._saved_at) / 60
        ending, saving = asked.agreed(self.context.device, saving=0 < plan.save_minutes <= minutes)
        end_of_epoch = step % plan.updates == 0  # which validates and saves by itself
        planned = step == plan.last_step or (plan.save_every and step % plan.save_every == 0)
        if ending or ((saving or planned) and not end_of_epoch):
            self._save_last(epoch)
        self._leave_if(ending)

    @contextmanager
    def _ended_by(self, asked: Requests, epoch: int) -> Iterator[None]:
        """Round what may be dropped: saves the state after the last update and leaves."""
        try:
            yield
        except UpdateDropped:
            self.logger.info(f"what was under way did not end within TRAIN.GRACE_SECONDS {self.plan.grace_seconds:g}")
            self._save_last(epoch)
            self._leave_if(asked.agreed(self.context.device)[0])

    def _leave_if(self, signal_number: int) -> None:
        if signal_number:
            self._write_status("stopped")
            name = signal.Signals(signal_number).name
            raise Interrupted(
                f"stopped by {name} at step {self.progress.step} of {self.plan.total_steps}, and saved; "
                f"go on with: {self.command}",
                signal_number,
            )

    def _finish_epoch(self, asked: Requests, seconds: float) -> None:
        """Validates the epoch that the last update ended, and saves."""
        plan, progress = self.plan, self.progress
        epoch = progress.step // plan.updates - 1
        alone = self.ranks.world_size == 1  # ranks gather each other's logits on the way, which nobody may leave
        with self._ended_by(asked, epoch), asked.droppable() if alone else nullcontext():
            logits, truth = self._predict()
        self._keep_scores(epoch, logits, truth, seconds)
        progress.validated = epoch + 1
        ending, saving = asked.agreed(self.context.device)
        due = (epoch + 1) % plan.save_freq == 0 or progress.step >= plan.last_step
        if due or ending or saving:
            self._save_last(epoch)
        self._leave_if(ending)

    def _predict(self) -> tuple[np.ndarray, np.ndarray]:
        model = self.train_state.inference_model()
        share_weights(self.train_state.module, model)  # batch norm's statistics differ between ranks
        return predict(
            model,
            self.val_batches(),
            self.context.device,
            self.train_state.precision,
            self.num_classes,
            micro_batch=self.progress.micro_batch,
        )

    def _keep_scores(self, epoch: int, logits: np.ndarray, truth: np.ndarray, seconds: float) -> None:
        """Scores the validation photos, keeps the best weights, and writes the epoch's row."""
        progress = self.progress
        scores = validation_scores(self.rule, logits, truth)
        self.fitted = fitted_state(fit(self.rule, logits, truth), logits, truth)
        self.logger.info(score_line(scores))
        better = scores[self.select] > progress.best  # a tie keeps the earlier step
        progress.best = max(progress.best, scores[self.select])
        self.logger.info(f"Max {self.select}: {100 * progress.best:.2f}%{' (new best.pth)' if better else ''}")
        row = {
            "epoch": epoch,
            "step": progress.step,
            "lr": self.schedule(progress.step - 1),
            "train_loss": progress.mean_loss,
            "grad_norm": progress.mean_norm,
            "skipped": progress.skipped,
            "seconds": seconds,
            "val_loss": scores["loss"],
            "best": int(better),
        }
        row |= {key: scores[key] for key in FIELDS if key in scores}
        with on_first_rank(self.ranks):
            if self.ranks.first:
                with self._own_folder() as folder:
                    self._keep_weights(folder, epoch, better, scores)
                    rows = add_row(folder / HISTORY, row)
                    write_bytes(folder / "curves.png", draw_curves(rows), make_folder=False)

    def _keep_weights(self, folder: Path, epoch: int, better: bool, scores: dict) -> None:
        """Writes best.pth, and the snapshot that was asked for after this epoch."""
        paths = [folder / store.BEST] if better else []
        if epoch + 1 in self.snapshots:
            paths.append(folder / store.SNAPSHOTS / f"epoch_{epoch + 1:03d}.pth")
        overall = {key: value for key, value in scores.items() if key != "per_class"}
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            weights = {"model": self.train_state.inference_model().state_dict(), "scores": overall}
            store.save(path, self._header(epoch) | weights)

    def _header(self, epoch: int) -> dict:
        return {"format": store.FORMAT, **self.meta, **self.fitted, "step": self.progress.step, "epoch": epoch}

    def _save_last(self, epoch: int) -> None:
        with on_first_rank(self.ranks):
            if self.ranks.first:
                state = self.train_state.state() | self.progress.state()
                with self._own_folder() as folder:
                    last, previous = folder / store.LAST, folder / store.PREVIOUS
                    store.save(last, self._header(epoch) | state, previous)
        self._saved_at = time.monotonic()

    @contextmanager
    def _own_folder(self) -> Iterator[Path]:
        """The run folder to write into. When it goes or is replaced, before or in the middle, that is what is said.

        Another folder of its name would get half a run, or be somebody else's.
        """
        self._check_folder()
        try:
            yield self.folder
        except (ResourceError, OSError):
            self._check_folder()
            raise

    def _check_folder(self) -> None:
        try:
            same = os.path.samestat(self.folder.stat(), self._began_in)
        except OSError:
            same = False
        if not same:
            raise ResourceError(f"{self.folder} was removed or replaced under the run; put it back, or start anew")

    def _log_update(self, epoch: int, done: int, update: Update, pace: float) -> None:
        """The course project's line. In brackets the epoch's mean."""
        left = self.plan.total_steps - self.progress.step
        self.logger.info(
            f"Train: [{epoch}/{self.plan.epochs}][{done - 1}/{self.plan.updates}]\t"
            f"eta {_clock(left * pace)} lr {update.lr:.6g}\t"
            f"time {update.seconds:.4f} ({pace:.4f})\t"
            f"loss {update.loss:.4f} ({self.progress.mean_loss:.4f})\t"
            f"grad_norm {update.grad_norm:.4f} ({self.progress.mean_norm:.4f})\t"
            f"mem {peak_memory(self.context.device) / 2**20:.0f}MB"
        )
        self._write_status("training", seconds_an_update=pace, loss=self.progress.mean_loss)

    def _write_status(self, state: str, **more) -> None:
        """Leaves word of where the run stands, for `python -m tools status`."""
        if self.ranks.first:
            progress, plan = self.progress, self.plan
            now = {"state": state, "at": datetime.now(UTC).isoformat(), "command": self.command}
            steps = {"step": progress.step, "total_steps": plan.total_steps, "updates_an_epoch": plan.updates}
            self._status |= now | steps | {"select": self.select, "best": progress.best} | more
            with self._own_folder() as folder:
                write_bytes(folder / STATUS, (json.dumps(self._status) + "\n").encode(), make_folder=False)


def validation_scores(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """`tools.evaluate.metrics.score` of `[n, num_classes]` logits by an unfitted rule, and `loss`."""
    probability = rule.probabilities(logits)
    scores = score(probability, rule.decide(probability), truth)
    return scores | {"loss": validation_loss(logits, truth, rule.targets, CRITERIA[rule.targets])}


def fitted_state(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """A fitted rule as plain values, and the validation logits and truth it was fitted on, for a checkpoint."""
    return {
        "thresholds": rule.thresholds.tolist(),
        "temperatures": rule.temperatures.tolist(),
        "validation": {"logits": torch.from_numpy(logits), "truth": torch.from_numpy(truth)},
    }


def score_line(scores: dict) -> str:
    """One line of validation scores, in the words of the log."""
    return (
        f"Test: Loss {scores['loss']:.4f}  Acc@1 {100 * scores['accuracy']:.3f} "
        f"(of at most {100 * scores['ceiling']:.2f})  Acc@2 {100 * scores['top2']:.3f}  "
        f"hit@1 {100 * scores['hit1']:.2f}  exact match {100 * scores['exact']:.2f}  "
        f"macro-F1 {scores['macro_f1']:.4f}  over {scores['photos']} photos, {scores['copies']} copies"
    )


def record_start(folder: Path, argv: list[str]) -> None:
    """Writes run.json: when the run started and with what command line. The newest run is found by it, not by mtime."""
    record = {"started": datetime.now(UTC).isoformat(), "argv": argv}
    write_bytes(folder / store.RUN, (json.dumps(record) + "\n").encode())


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
