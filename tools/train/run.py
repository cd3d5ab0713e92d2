"""A training run: epochs of training and validation, what is logged, when it saves, and how it ends."""

import logging
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import takewhile

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from models.weights import load_strictly
from tools.base.errors import CheckpointError, Interrupted
from tools.checkpoint.store import BEST
from tools.evaluate.calibration import fit
from tools.evaluate.inference import predict
from tools.evaluate.metrics import score
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import on_first_rank, share_weights
from tools.runtime.memory import peak_memory
from tools.runtime.precision import Precision
from tools.runtime.signals import Requests, requests
from tools.train.data import RunData
from tools.train.history import FIELDS
from tools.train.loop import Progress, train_one_epoch
from tools.train.losses import CRITERIA
from tools.train.optim import restore_state
from tools.train.output import RunFolder
from tools.train.step import StepContext, StepResult


@dataclass(frozen=True)
class Plan:
    """How a run is divided into epochs and updates, and when it logs, saves and stops.

    Attributes:
        num_batches: batches per epoch on every rank.
        accumulation_steps: batches per update; the last update of an epoch may have fewer.
        images_per_update: over all ranks and accumulated batches.
        save_every_steps: updates between writes of last.pth inside an epoch; 0 for none.
        save_every_minutes: minutes between them; 0 for none.
        max_steps: updates after which to stop, resumable; 0 for none.
        select_by: the validation score that selects best.pth.
        snapshot_epochs: epochs, from 1, after which the weights are kept.
    """

    epochs: int
    num_batches: int
    accumulation_steps: int
    images_per_update: int
    save_freq: int = 1
    save_every_steps: int = 0
    save_every_minutes: float = 0.0
    max_steps: int = 0
    print_freq: int = 10
    select_by: str = "accuracy"
    snapshot_epochs: tuple[int, ...] = ()

    @property
    def updates_per_epoch(self) -> int:
        """Updates per epoch."""
        return math.ceil(self.num_batches / self.accumulation_steps)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.updates_per_epoch

    @property
    def last_step(self) -> int:
        """Updates after which this process stops."""
        return min(self.total_steps, self.max_steps or self.total_steps)


@dataclass
class TrainState:
    """What training changes: the model, its optimizer, its precision's scaler, and `ema`, its average or None."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: ModelEmaV3 | None = None

    def inference_model(self) -> nn.Module:
        """The weights that are validated, selected and tested."""
        return self.ema.module if self.ema is not None else self.module

    def state_dict(self) -> dict:
        """Everything that a resume needs besides `Progress`."""
        return {
            "model": self.module.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema is not None else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
        }

    def load_state_dict(self, stored: dict, where: str) -> None:
        """The inverse of `state_dict`. Raises CheckpointError for a state that does not fit."""
        if bool(stored["model_ema"]) != (self.ema is not None):
            raise CheckpointError(f"{where} was made with another TRAIN.EMA_DECAY")
        load_strictly(self.module, stored["model"], where)
        if self.ema is not None:
            load_strictly(self.ema.module, stored["model_ema"], where)
        restore_state(self.optimizer, stored["optimizer"], where, moved=stored["step"] > stored["skipped"])
        self.precision.load_state_dict(stored["scaler"])


@dataclass
class Run:
    """A run on one rank.

    Attributes:
        rule: the unfitted rule for validation scores.
        fitted: what the last validation fitted (`fitted_state`), for the checkpoints.
    """

    plan: Plan
    data: RunData
    state: TrainState
    context: StepContext
    progress: Progress
    output: RunFolder
    rule: DecisionRule
    fitted: dict
    logger: logging.Logger
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def fit(self) -> None:
        """Trains to the end of the plan, or to its `max_steps`.

        Raises:
            Interrupted: after a signal, once last.pth has been written.
        """
        begun = started = time.monotonic()
        plan, progress = self.plan, self.progress
        with requests() as asked:
            while True:
                if progress.validated < progress.step // plan.updates_per_epoch:
                    self._finish_epoch(asked, time.monotonic() - started)
                if progress.step >= plan.last_step:
                    break
                started = time.monotonic()
                self._train_epoch(asked)
        self._log_end(time.monotonic() - begun)

    def _train_epoch(self, asked: Requests) -> None:
        """The updates that are left of the epoch; fewer when MAX_STEPS ends the run inside it."""
        plan, progress = self.plan, self.progress
        epoch, first = divmod(progress.step, plan.updates_per_epoch)
        if first == 0:
            progress.sums = [0.0] * 4
        batches = self.data.train_batches(epoch, first * plan.accumulation_steps, self.context.device)
        updates = train_one_epoch(self.context, batches, progress, plan.num_batches, plan.accumulation_steps)
        hidden = not self.context.ranks.first or not sys.stderr.isatty()
        bar = tqdm(total=plan.updates_per_epoch, initial=first, desc=f"epoch {epoch + 1}", leave=False, disable=hidden)
        started = time.monotonic()
        with bar:
            for update in updates:
                if self.state.ema is not None:
                    self.state.ema.update(self.state.module, step=progress.step)
                bar.update()
                done = progress.step - epoch * plan.updates_per_epoch
                if (done - 1) % plan.print_freq == 0 or done == plan.updates_per_epoch:
                    with on_first_rank(self.context.ranks):
                        self._log_update(epoch, done, update, (time.monotonic() - started) / (done - first))
                self._save_or_leave(asked, epoch)
                if progress.step == plan.last_step:
                    break
        self.logger.info(f"EPOCH {epoch + 1} training takes {_clock(time.monotonic() - started)}")

    def _save_or_leave(self, asked: Requests, epoch: int) -> None:
        """Between two updates: saves when it is time to, and leaves when a signal asked for it."""
        plan, step = self.plan, self.progress.step
        minutes = (time.monotonic() - self._saved_at) / 60
        ending, saving = asked.agreed(self.context.device, saving=0 < plan.save_every_minutes <= minutes)
        end_of_epoch = step % plan.updates_per_epoch == 0  # _finish_epoch validates and saves
        planned = step == plan.last_step or (plan.save_every_steps and step % plan.save_every_steps == 0)
        if ending or ((saving or planned) and not end_of_epoch):
            self._save_last(epoch)
        self._leave_if(ending)

    def _leave_if(self, signal_number: int) -> None:
        if signal_number:
            self._write_status("stopped")
            name = signal.Signals(signal_number).name
            raise Interrupted(
                f"stopped by {name} at step {self.progress.step} of {self.plan.total_steps}, and saved; "
                f"resume with: {self.output.command}",
                signal_number,
            )

    def _finish_epoch(self, asked: Requests, seconds: float) -> None:
        """Validates the epoch that the last update ended, and saves. A single rank leaves validation for a signal."""
        plan, progress = self.plan, self.progress
        epoch = progress.step // plan.updates_per_epoch - 1
        batches = self.data.val_batches(self.context.device)
        if alone := self.context.ranks.world_size == 1:  # other ranks would wait for this one's logits
            batches = takewhile(lambda _batch: not asked.ending, batches)
        logits, truth = self._predict(batches)
        if not (alone and asked.ending):
            self._record_epoch(epoch, logits, truth, seconds)
            progress.validated = epoch + 1
        ending, saving = asked.agreed(self.context.device)
        due = (epoch + 1) % plan.save_freq == 0 or progress.step >= plan.last_step
        if due or ending or saving:
            self._save_last(epoch)
        self._leave_if(ending)

    def _predict(self, batches) -> tuple[np.ndarray, np.ndarray]:
        model = self.state.inference_model()
        share_weights(self.state.module, model)  # the statistics of batch norm differ between ranks
        num_classes, micro_batch = len(self.data.train.classes), self.progress.micro_batch
        return predict(model, batches, self.context.device, self.state.precision, num_classes, micro_batch=micro_batch)

    def _record_epoch(self, epoch: int, logits: np.ndarray, truth: np.ndarray, seconds: float) -> None:
        """Scores the validation photos, keeps the best weights, and writes the epoch's row."""
        plan, progress = self.plan, self.progress
        scores = validation_scores(self.rule, logits, truth)
        self.fitted = fitted_state(fit(self.rule, logits, truth), logits, truth)
        self.logger.info(score_line(scores))
        is_best = scores[plan.select_by] > progress.best  # on a tie, the earlier best.pth stays
        progress.best = max(progress.best, scores[plan.select_by])
        self.logger.info(f"Max {plan.select_by}: {100 * progress.best:.2f}%{' (new best.pth)' if is_best else ''}")
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            "lr": self.context.schedule(progress.step - 1),
            "train_loss": progress.mean_loss,
            "grad_norm": progress.mean_norm,
            "skipped": progress.skipped,
            "seconds": seconds,
            "val_loss": scores["loss"],
            "best": int(is_best),
        }
        row |= {key: scores[key] for key in FIELDS if key in scores}
        overall = {key: value for key, value in scores.items() if key != "per_class"}
        weights = {"model": self.state.inference_model().state_dict(), "scores": overall}
        snapshot = epoch + 1 in plan.snapshot_epochs
        self.output.add_epoch(row, self._header(epoch) | weights, is_best=is_best, snapshot=snapshot)

    def _header(self, epoch: int) -> dict:
        return {**self.fitted, "step": self.progress.step, "epoch": epoch}

    def _save_last(self, epoch: int) -> None:
        self.output.save_last(self._header(epoch) | self.state.state_dict() | asdict(self.progress))
        self._saved_at = time.monotonic()

    def _log_update(self, epoch: int, done: int, update: StepResult, pace: float) -> None:
        """One line per PRINT_FREQ updates; in brackets the epoch's means."""
        progress, plan = self.progress, self.plan
        left = timedelta(seconds=int((plan.total_steps - progress.step) * pace))
        self.logger.info(
            f"Train: [{epoch + 1}/{plan.epochs}][{done}/{plan.updates_per_epoch}] eta {left} lr {update.lr:.3g} "
            f"time {pace:.2f} loss {update.loss:.3f} ({progress.mean_loss:.3f}) "
            f"norm {update.grad_norm:.3g} mem {peak_memory(self.context.device) / 2**20:.0f}MB"
        )
        self._write_status("training", seconds_per_update=pace, loss=progress.mean_loss)

    def _log_end(self, seconds: float) -> None:
        """How far the run came, its folder, and the commands that score and explain it."""
        plan, progress, folder = self.plan, self.progress, self.output.path
        done = progress.step >= plan.total_steps
        if not done:
            self.logger.info(f"stopped at step {progress.step} of {plan.total_steps} as TRAIN.MAX_STEPS asked")
        if progress.best >= 0:
            self.logger.info(f"Max {plan.select_by}: {100 * progress.best:.2f}%")
        self.logger.info(f"Training time {_clock(seconds)}")
        self._write_status("finished" if done else "stopped")
        self.logger.info(f"run folder: {folder}")
        if progress.best >= 0:
            self.logger.info(f"score it: python test.py --resume {folder / BEST}")
            self.logger.info(f"see where it looked: python visual.py --resume {folder / BEST} --examples 6")

    def _write_status(self, state: str, **values: object) -> None:
        progress, plan = self.progress, self.plan
        steps = {"step": progress.step, "total_steps": plan.total_steps, "updates_per_epoch": plan.updates_per_epoch}
        self.output.write_status(state, **steps, select_by=plan.select_by, best=progress.best, **values)


def validation_scores(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """`tools.evaluate.metrics.score` of `[n, num_classes]` logits by an unfitted rule, and `loss`.

    The loss is the mean over photos for "multi" targets, and over label copies for "single".
    """
    answers = rule.answer(logits)
    scores = score(answers.probability, answers.decision, truth)
    if rule.targets == "single":  # a photo of two labels is two samples, each with one class
        rows, classes = np.nonzero(truth)
        logits, truth = logits[rows], np.eye(truth.shape[1])[classes]
    loss = CRITERIA[rule.targets](torch.from_numpy(logits), torch.tensor(truth, dtype=torch.float32))
    return scores | {"loss": float(loss)}


def fitted_state(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """A fitted rule as plain values, and the validation logits and truth it was fitted on, for a checkpoint."""
    return {
        "thresholds": rule.thresholds.tolist(),
        "temperatures": rule.temperatures.tolist(),
        "validation": {"logits": torch.from_numpy(logits), "truth": torch.from_numpy(truth)},
    }


def score_line(scores: dict) -> str:
    """One line of validation scores for the log."""
    return (
        f"Test: loss {scores['loss']:.4f} Acc@1 {100 * scores['accuracy']:.2f} (at most "
        f"{100 * scores['ceiling']:.2f}) Acc@2 {100 * scores['top2']:.2f} hit@1 {100 * scores['hit1']:.2f} "
        f"exact {100 * scores['exact']:.2f} macro-F1 {scores['macro_f1']:.4f}"
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
