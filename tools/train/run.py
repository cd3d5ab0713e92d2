"""A training run: epochs of training and validation, what is logged, when it saves, and how it ends."""

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import takewhile

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.build import batches_of, resume_batches
from models.weights import load_strictly
from tools.base.errors import CheckpointError, Interrupted
from tools.checkpoint.store import BEST, FITTED_KEYS
from tools.evaluate.calibration import calibrate
from tools.evaluate.inference import predict
from tools.evaluate.metrics import score
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import share_weights, together
from tools.runtime.memory import describe_memory, peak_memory
from tools.runtime.precision import Precision
from tools.runtime.profiler import profile_updates
from tools.runtime.signals import Requests, requests
from tools.train.data import RunData
from tools.train.ema import ModelEma
from tools.train.history import SCORES
from tools.train.loop import Progress, train_one_epoch
from tools.train.losses import CRITERIA
from tools.train.optim import restore_state
from tools.train.output import TRACE, RunFolder
from tools.train.resume import Start
from tools.train.step import StepContext, StepResult

logger = logging.getLogger("plantswin")


@dataclass(frozen=True)
class Plan:
    """How a run is divided into epochs and steps, and when it logs, saves and stops.

    Attributes:
        num_batches: batches per epoch on every rank.
        accumulation_steps: batches per step; the last step of an epoch may have fewer.
        images_per_update: per step, over all ranks and accumulated batches.
        save_every_steps: steps between writes of last.pth inside an epoch; 0 for none.
        save_every_minutes: minutes between them; 0 for none.
        max_steps: steps after which to stop, resumable; 0 for none.
        select_by: the validation score that selects best.pth.
        snapshot_epochs: epochs, from 1, after which the weights are kept.
        profile_updates: steps to profile, fewer than those of an epoch; 0 for none.
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
    profile_updates: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return math.ceil(self.num_batches / self.accumulation_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """Steps after which this process stops."""
        return min(self.total_steps, self.max_steps or self.total_steps)


@dataclass
class TrainState:
    """What training changes: the model, its optimizer, the loss scaler, and `ema`, the averaged model or None."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    ema: ModelEma | None = None

    def inference_model(self) -> nn.Module:
        """The model whose weights are validated, selected and tested."""
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
    """A run on one rank, as `tools.train.setup.prepare_run` builds it.

    Attributes:
        output: opened after `prepare_run`.
        rule: the unfitted rule for validation scores.
        fitted: what the last validation fitted (`fitted_state`), for the checkpoints.
        origin: where the weights came from.
        notes: lines to log first.
        start: what `restore` resumes, if anything.
    """

    data: RunData
    plan: Plan
    state: TrainState
    context: StepContext
    progress: Progress
    output: RunFolder
    rule: DecisionRule
    fitted: dict
    origin: str
    notes: list[str]
    start: Start
    _saved_at: float = field(default_factory=time.monotonic, init=False)
    _profiled: bool = field(default=False, init=False)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 0."""
        return (self.progress.step - 1) // self.plan.steps_per_epoch

    def restore(self) -> None:
        """Continues from the checkpoint of `start`. Raises CheckpointError for a state that does not fit."""
        stored, where = self.start.stored, str(self.start.path)
        self.state.load_state_dict(stored, where)
        self.progress = Progress.from_state_dict(stored, self.context.batch_size)
        self.fitted = {key: stored[key] for key in FITTED_KEYS}
        self.origin = f"weights of {where}"

    def nothing_left(self) -> str:
        """Why there is nothing left to train; the empty string when there is something."""
        plan, progress, path = self.plan, self.progress, self.start.path
        if progress.step < plan.last_step or progress.validated < plan.last_step // plan.steps_per_epoch:
            return ""
        if plan.last_step == plan.total_steps:
            return f"the run is finished ({progress.step} steps, {path}): nothing left to do"
        return f"{path} has reached TRAIN.MAX_STEPS ({progress.step} steps): nothing left to do"

    def fit(self) -> None:
        """Trains to the end of the plan, or to its `max_steps`.

        Raises:
            Interrupted: after a signal, once last.pth has been written.
        """
        begun, seconds = time.monotonic(), 0.0
        with requests() as asked:
            while True:
                if self.progress.validated < self.progress.step // self.plan.steps_per_epoch:
                    self._finish_epoch(asked, seconds)
                if self.progress.step >= self.plan.last_step:
                    break
                seconds = self._train_epoch(asked)
        self._log_end(time.monotonic() - begun)

    def _train_epoch(self, asked: Requests) -> float:
        """Trains the rest of the epoch, or less if MAX_STEPS ends the run inside it; returns the seconds it took."""
        plan, progress, ranks = self.plan, self.progress, self.context.ranks
        epoch, first = divmod(progress.step, plan.steps_per_epoch)
        if first == 0:
            progress.sums = [0.0] * 4
        batches = resume_batches(self.data.train_loader, epoch, first * plan.accumulation_steps)
        results = train_one_epoch(self.context, batches, progress, plan.num_batches, plan.accumulation_steps)
        hidden = None if ranks.first else True  # None: tqdm shows it on a terminal only
        bar = tqdm(total=plan.steps_per_epoch, initial=first, desc=f"epoch {epoch + 1}", leave=False, disable=hidden)
        started = time.monotonic()
        with bar, self._profile(plan.steps_per_epoch - first) as after_update:
            for done, result in enumerate(results, first + 1):
                if self.state.ema is not None:
                    self.state.ema.update(progress.step)
                bar.update()
                after_update()
                if (done - 1) % plan.print_freq == 0 or done == plan.steps_per_epoch:
                    with together(ranks):
                        self._log_step(done, result, (time.monotonic() - started) / (done - first))
                last = progress.step == plan.last_step
                planned = last or (plan.save_every_steps > 0 and progress.step % plan.save_every_steps == 0)
                self._save_or_leave(asked, planned and done < plan.steps_per_epoch)  # else saved after validation
                if last:
                    break
        seconds = time.monotonic() - started
        logger.info(f"EPOCH {epoch + 1} training takes {timedelta(seconds=int(seconds))}")
        return seconds

    def _profile(self, num_updates: int) -> AbstractContextManager[Callable[[], object]]:
        """On the first rank: profiles the first epoch with enough updates left. See `profile_updates`."""
        wanted = self.plan.profile_updates
        now = not self._profiled and self.context.ranks.first and wanted < num_updates
        self._profiled |= now
        return profile_updates(wanted if now else 0, self.output.path / TRACE)

    def _save_or_leave(self, asked: Requests, planned: bool) -> None:
        """Between two steps: saves if a save is due or requested, and exits if a signal requested it."""
        plan, step = self.plan, self.progress.step
        minutes = (time.monotonic() - self._saved_at) / 60
        ending, saving = asked.agreed(saving=0 < plan.save_every_minutes <= minutes)
        if planned or ending or saving:
            self.output.save_last(self._header() | self.state.state_dict() | asdict(self.progress))
            self._saved_at = time.monotonic()
        if ending:
            self._write_status("stopped")
            raise Interrupted(
                f"stopped by {signal.Signals(ending).name} at step {step} of {plan.total_steps}, and saved; "
                f"resume with: {self.output.command}",
                ending,
            )

    def _finish_epoch(self, asked: Requests, seconds: float) -> None:
        """Validates after the last step of an epoch, and saves. With a single rank, a signal stops the validation."""
        context, num_classes = self.context, len(self.data.train.labels.names)
        batches = batches_of(self.data.val_loader, context.device)
        if alone := context.ranks.world_size == 1:  # other ranks would wait for this one's logits
            batches = takewhile(lambda _batch: not asked.ending, batches)
        model = self.state.inference_model()
        share_weights(self.state.module, model)  # the statistics of batch norm differ between ranks
        micro_batch = self.progress.micro_batch
        logits, truth = predict(model, batches, context.device, context.precision, num_classes, micro_batch=micro_batch)
        if not (alone and asked.ending):
            self._record_epoch(logits, truth, seconds)
            self.progress.validated = self.epoch + 1
        last = self.progress.step >= self.plan.last_step
        self._save_or_leave(asked, last or (self.epoch + 1) % self.plan.save_freq == 0)

    def _record_epoch(self, logits: np.ndarray, truth: np.ndarray, seconds: float) -> None:
        """Scores the validation photos, keeps the best weights, and writes the epoch's row."""
        plan, progress, epoch = self.plan, self.progress, self.epoch + 1
        scores = validation_scores(self.rule, logits, truth)
        self.fitted = fitted_state(calibrate(self.rule, logits, truth), logits, truth)
        logger.info(score_line(scores))
        is_best = scores[plan.select_by] > progress.best  # on a tie, the earlier best.pth stays
        progress.best = max(progress.best, scores[plan.select_by])
        logger.info(f"Max {plan.select_by}: {100 * progress.best:.2f}%{' (new best.pth)' if is_best else ''}")
        row = {
            "epoch": epoch,
            "step": progress.step,
            "lr": self.context.schedule(progress.step - 1),
            "train_loss": progress.mean_loss,
            "grad_norm": progress.mean_norm,
            "skipped": progress.skipped,
            "seconds": seconds,
            "val_loss": scores["loss"],
            **{name: scores[name] for name in SCORES},
            "best": int(is_best),
        }
        overall = {key: value for key, value in scores.items() if key != "per_class"}
        content = {**self._header(), "model": self.state.inference_model().state_dict(), "scores": overall}
        self.output.add_epoch(row, content, is_best=is_best, snapshot=epoch in plan.snapshot_epochs)

    def _header(self) -> dict:
        return {**self.fitted, "step": self.progress.step, "epoch": self.epoch}

    def _log_step(self, done: int, result: StepResult, pace: float) -> None:
        """One line per PRINT_FREQ steps; in brackets the epoch's means."""
        progress, plan = self.progress, self.plan
        left = timedelta(seconds=int((plan.total_steps - progress.step) * pace))
        memory = peak_memory(self.context.device)
        logger.info(
            f"Train: [{self.epoch + 1}/{plan.epochs}][{done}/{plan.steps_per_epoch}] eta {left} lr {result.lr:.3g} "
            f"time {pace:.2f} loss {result.loss:.3f} ({progress.mean_loss:.3f}) "
            f"norm {result.grad_norm:.3g} mem {describe_memory(memory, unit='MB')}"
        )
        values = {"lr": result.lr, "seconds": pace, "loss": result.loss, "grad_norm": result.grad_norm}
        values |= {"mean_loss": progress.mean_loss, **{f"{kind}_bytes": count for kind, count in memory.items()}}
        self.output.add_scalars("update", progress.step, values)
        self._write_status("training", seconds_per_update=pace, loss=progress.mean_loss)

    def _log_end(self, seconds: float) -> None:
        """How far the run came, its folder, and the commands that score and explain it."""
        plan, progress, folder = self.plan, self.progress, self.output.path
        done = progress.step >= plan.total_steps
        if not done:
            logger.info(f"stopped at step {progress.step} of {plan.total_steps} as TRAIN.MAX_STEPS asked")
        if progress.best >= 0:
            logger.info(f"Max {plan.select_by}: {100 * progress.best:.2f}%")
        logger.info(f"Training time {timedelta(seconds=int(seconds))}")
        self._write_status("finished" if done else "stopped")
        logger.info(f"run folder: {folder}")
        if progress.best >= 0:
            logger.info(f"score it: python test.py --resume {folder / BEST}")
            logger.info(f"see where it looked: python visual.py --resume {folder / BEST} --examples 6")

    def _write_status(self, state: str, **values: object) -> None:
        progress, plan = self.progress, self.plan
        steps = {"step": progress.step, "total_steps": plan.total_steps, "updates_per_epoch": plan.steps_per_epoch}
        self.output.write_status(state, **steps, select_by=plan.select_by, best=progress.best, **values)


def validation_scores(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> dict:
    """`tools.evaluate.metrics.score` of `[n, num_classes]` logits with an unfitted rule, plus `loss`.

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
