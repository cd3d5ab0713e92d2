"""A training run: epochs of training and validation, what is logged, what is saved, and how it ends."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from tools import checkpoint
from tools.decisions import DecisionRule, fit
from tools.distributed import Ranks, wait_for_all
from tools.engine import Draws, Progress, Update, peak_memory, predict, train_one_epoch, validation_loss
from tools.errors import CheckpointError, Interrupted
from tools.figures import draw_curves
from tools.files import write_bytes
from tools.history import FIELDS, HISTORY, add_row
from tools.losses import CRITERIA
from tools.metrics import score
from tools.optim import restore_state
from tools.signals import StopRequest, stop_requests


@dataclass(frozen=True)
class Plan:
    """How epochs are cut into updates.

    Attributes:
        num_batches: batches of an epoch, on every rank.
        accumulation: batches of an update; the epoch's last update may have fewer.
        images_per_update: over all ranks and accumulated batches.
        save_every: updates between writings of last.pth inside an epoch; 0 for none.
        stop_after: updates after which to stop with everything saved; 0 for none.
    """

    epochs: int
    num_batches: int
    accumulation: int
    images_per_update: int
    save_freq: int = 1
    save_every: int = 0
    stop_after: int = 0

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
class Learner:
    """What training moves: `module` the bare model, `forward` it or its DDP wrapper, `ema` its average or None."""

    module: nn.Module
    forward: nn.Module
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
        meta: what every checkpoint says besides weights and progress (config, classes, preprocess, ...).
        rule: how photos are given labels before anything is fitted; validation scores use it as it is.
        fitted: what the last validation says of calibration and decisions, for the checkpoints.
        train_batches: (epoch, batches to skip) -> what is left of this rank's batches of the epoch.
        val_batches: () -> this rank's validation batches.
        draw: (step, batch of the update) -> its randomness.
        select: the validation score that chooses best.pth.
    """

    folder: Path
    logger: logging.Logger
    ranks: Ranks
    device: torch.device
    plan: Plan
    schedule: Callable[[int], float]
    learner: Learner
    progress: Progress
    meta: dict
    rule: DecisionRule
    fitted: dict
    num_classes: int
    select: str
    train_criterion: Callable[[Tensor, Tensor], Tensor]
    train_batches: Callable[[int, int], Iterable]
    val_batches: Callable[[], Iterable]
    draw: Callable[[int, int], Draws]
    clip_grad: float
    print_freq: int
    snapshots: list[int]

    def fit(self) -> None:
        """Trains to the end of the plan, or to its `stop_after`.

        Raises:
            Interrupted: after a signal, when last.pth is written.
        """
        started = time.perf_counter()
        with stop_requests() as request:
            while self.progress.step < self.plan.total_steps:
                if not self._epoch(request) or self._limit_reached():
                    break
        done = self.progress.step >= self.plan.total_steps
        if not done:
            self.logger.info(
                f"stopped at step {self.progress.step} of {self.plan.total_steps} as TRAIN.MAX_STEPS asked"
            )
        if self.progress.best >= 0:
            self.logger.info(f"Max {self.select}: {100 * self.progress.best:.2f}%")
        self.logger.info(f"Training time {_clock(time.perf_counter() - started)}")

    def _limit_reached(self) -> bool:
        return 0 < self.plan.stop_after <= self.progress.step

    def _epoch(self, request: StopRequest) -> bool:
        """One epoch from where progress stands; False when it was left before its end."""
        plan, progress = self.plan, self.progress
        epoch, first = divmod(progress.step, plan.updates)
        if first == 0:
            progress.sums = [0.0] * 4
        started = time.perf_counter()
        updates = train_one_epoch(
            self.learner.forward,
            self.train_batches(epoch, first * plan.accumulation),
            self.train_criterion,
            self.learner.optimizer,
            self.learner.precision,
            progress,
            num_batches=plan.num_batches,
            accumulation=plan.accumulation,
            schedule=self.schedule,
            draw=self.draw,
            device=self.device,
            clip_grad=self.clip_grad,
        )
        bar = tqdm(
            total=plan.updates,
            initial=first,
            desc=f"epoch {epoch}",
            leave=False,
            disable=not self.ranks.first or not _on_terminal(),
        )
        with bar:
            for update in updates:
                if self.learner.ema is not None:
                    self.learner.ema.update(self.learner.module, step=progress.step)
                bar.update()
                done = progress.step - epoch * plan.updates
                if (done - 1) % self.print_freq == 0 or done == plan.updates:
                    self._log_update(epoch, done, update, (time.perf_counter() - started) / (done - first))
                asked = request.agreed(self.device)
                if done == plan.updates:
                    break  # the epoch's end validates and saves, whatever was asked
                if asked or self._limit_reached() or (plan.save_every and progress.step % plan.save_every == 0):
                    self._save_last(epoch)
                self._leave_if(asked)
                if self._limit_reached():
                    return False
        seconds = time.perf_counter() - started
        self.logger.info(f"EPOCH {epoch} training takes {_clock(seconds)}")
        self._validate(epoch, update, seconds)
        asked = request.agreed(self.device)
        due = (epoch + 1) % plan.save_freq == 0 or epoch + 1 == plan.epochs
        if due or asked or self._limit_reached():
            self._save_last(epoch)
        self._leave_if(asked)
        return True

    def _leave_if(self, signal_number: int) -> None:
        if signal_number:
            raise Interrupted(
                f"stopped by signal {signal_number} at step {self.progress.step}; {self.folder} is saved, "
                "and the same command goes on from there",
                signal_number,
            )

    def _validate(self, epoch: int, update: Update, seconds: float) -> None:
        """Scores the validation photos, keeps the best weights, and writes the epoch's row."""
        progress = self.progress
        model, precision = self.learner.inference_model(), self.learner.precision
        logits, truth = predict(model, self.val_batches(), self.device, precision, self.num_classes)
        scores = validation_scores(self.rule, logits, truth)
        self.fitted = fitted_state(fit(self.rule, logits, truth), logits, truth)
        self.logger.info(score_line(scores))
        better = scores[self.select] > progress.best  # a tie keeps the earlier step
        progress.best = max(progress.best, scores[self.select])
        self.logger.info(f"Max {self.select}: {100 * progress.best:.2f}%{' (new best.pth)' if better else ''}")
        if self.ranks.first:
            self._keep_weights(epoch, better, scores)
            row = {
                "epoch": epoch,
                "step": progress.step,
                "lr": update.lr,
                "train_loss": progress.mean_loss,
                "grad_norm": progress.mean_norm,
                "skipped": progress.skipped,
                "seconds": seconds,
                "val_loss": scores["loss"],
                "best": int(better),
            }
            row |= {key: scores[key] for key in FIELDS if key in scores}
            rows = add_row(self.folder / HISTORY, row)
            write_bytes(self.folder / "curves.png", draw_curves(rows))

    def _keep_weights(self, epoch: int, better: bool, scores: dict) -> None:
        """Writes best.pth, and the snapshot that was asked for after this epoch."""
        paths = [self.folder / checkpoint.BEST] if better else []
        if epoch + 1 in self.snapshots:
            paths.append(self.folder / checkpoint.SNAPSHOTS / f"epoch_{epoch + 1:03d}.pth")
        overall = {key: value for key, value in scores.items() if key != "per_class"}
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            weights = {"model": self.learner.inference_model().state_dict(), "scores": overall}
            checkpoint.save(path, self._header(epoch) | weights)

    def _header(self, epoch: int) -> dict:
        return {"format": checkpoint.FORMAT, **self.meta, **self.fitted, "step": self.progress.step, "epoch": epoch}

    def _save_last(self, epoch: int) -> None:
        if self.ranks.first:
            state = self.learner.state() | self.progress.state()
            checkpoint.save(self.folder / checkpoint.LAST, self._header(epoch) | state)
        wait_for_all()

    def _log_update(self, epoch: int, done: int, update: Update, pace: float) -> None:
        """The course project's line. In brackets the epoch's mean."""
        left = self.plan.total_steps - self.progress.step
        self.logger.info(
            f"Train: [{epoch}/{self.plan.epochs}][{done - 1}/{self.plan.updates}]\t"
            f"eta {_clock(left * pace)} lr {update.lr:.6g}\t"
            f"time {update.seconds:.4f} ({pace:.4f})\t"
            f"loss {update.loss:.4f} ({self.progress.mean_loss:.4f})\t"
            f"grad_norm {update.grad_norm:.4f} ({self.progress.mean_norm:.4f})\t"
            f"mem {peak_memory(self.device) / 2**20:.0f}MB"
        )


def validation_scores(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """`tools.metrics.score` of `[n, num_classes]` logits by an unfitted rule, and `loss`."""
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
    write_bytes(folder / checkpoint.RUN, (json.dumps(record) + "\n").encode())


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
