"""What surrounds BasicSR's training loop: data in a resumable order, progress, a clean stop, a checkpoint on a crash.

BasicSR's `train_pipeline` runs unchanged. A `TrainingSession` replaces the functions it calls to build its parts
(for the duration of the run) and watches its iterations through the prefetcher, which the loop asks for a batch exactly
once per iteration, after everything else of the previous iteration (saving, validation) is done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bam_plugin import _compat
from bam_plugin.data.sampler import ResumableSampler
from bam_plugin.errors import BamError
from bam_plugin.optim.schedules import check_restart_schedule, resolve_epochs

LOGGER = logging.getLogger("basicsr")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(BamError):
    """A signal ended the training; a checkpoint was saved and the training can be resumed."""

    exit_code = 130


class TrainingDataError(BamError):
    """The datasets of the option file cannot feed a training."""


class TrainingSession:
    """One run of BasicSR's `train_pipeline`, made resumable and interruptible; use `with session.installed():`."""

    def __init__(self) -> None:
        self.opt: dict[str, Any] = {}
        self.model: Any = None
        self.tb_logger: Any = None
        self.sampler: ResumableSampler | None = None
        self.iteration = 0
        self._total_iter = 0
        self.bar: tqdm | None = None
        self._resume_state: dict[str, Any] | None = None
        self._signal: int | None = None
        self._cleanup = contextlib.ExitStack()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put this session's functions into `basicsr.train`; take them out and tidy up at the end."""
        import basicsr.train as pipeline

        make_model, load_state = pipeline.build_model, pipeline.load_resume_state
        parse, make_tb_logger = pipeline.parse_options, pipeline.init_tb_loggers
        cpu, cuda = pipeline.CPUPrefetcher, pipeline.CUDAPrefetcher

        def parse_options(*args: Any, **kwargs: Any) -> Any:
            opt, parsed = parse(*args, **kwargs)
            resolve_epochs(opt["train"])
            check_restart_schedule(opt["train"].get("scheduler") or {}, opt["train"]["total_iter"])
            return opt, parsed

        def init_tb_loggers(opt: dict[str, Any]) -> Any:
            self.tb_logger = make_tb_logger(opt)
            return self.tb_logger

        def build_model(opt: dict[str, Any]) -> Any:
            self.model = make_model(opt)
            self.model.tb_logger = self.tb_logger
            return self.model

        def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
            self.opt = opt
            self._resume_state = load_state(opt)
            return self._resume_state

        with (
            _compat.replaced(
                pipeline,
                parse_options=parse_options,
                init_tb_loggers=init_tb_loggers,
                build_model=build_model,
                load_resume_state=load_resume_state,
                create_train_val_dataloader=self.make_loaders,
                CPUPrefetcher=lambda loader: WatchedPrefetcher(lambda: cpu(loader), self),
                CUDAPrefetcher=lambda loader, opt: WatchedPrefetcher(lambda: cuda(loader, opt), self),
            ),
            self._cleanup,
        ):
            self._catch_signals()
            try:
                yield
            except TrainingInterruptedError:
                raise
            except BaseException as error:
                self._save_after_crash(error)
                raise

    def make_loaders(self, opt: dict[str, Any], logger: logging.Logger) -> tuple[Any, Any, list[Any], int, int]:
        """BasicSR's `create_train_val_dataloader` with a resumable order and generators of their own."""
        from basicsr.data import build_dataloader, build_dataset

        train_loader, val_loaders = None, []
        for phase, dataset_opt in opt["datasets"].items():
            dataset_opt.setdefault("manual_seed", opt["manual_seed"])
            dataset = build_dataset(dataset_opt)
            if phase == "train":
                self.sampler = self._make_sampler(opt, dataset_opt, dataset)
            elif not phase.startswith("val"):
                raise TrainingDataError(f"datasets.{phase}: expected `train`, `val` or `val_N`")
            loader = build_dataloader(
                dataset,
                dataset_opt,
                num_gpu=opt["num_gpu"],
                dist=opt["dist"],
                sampler=self.sampler if phase == "train" else None,
                seed=opt["manual_seed"],
            )
            # Starting an iterator draws a number: from the global generator it would make an exact resume impossible.
            loader.generator = torch.Generator().manual_seed(opt["manual_seed"])
            if phase == "train":
                train_loader = loader
            else:
                logger.info(f"Number of val images/folders in {dataset_opt['name']}: {len(dataset)}")
                val_loaders.append(loader)
        if train_loader is None or self.sampler is None:
            raise TrainingDataError("the option file has no datasets.train")
        self._total_iter, per_epoch = int(opt["train"]["total_iter"]), self.sampler.batches
        epochs = math.ceil(self._total_iter / per_epoch)
        logger.info(
            f"Training: {len(self.sampler.dataset)} images, {per_epoch} iterations of {self.sampler.batch_size} x "
            f"{opt['world_size']} samples per pass over them, {self._total_iter} iterations = {epochs} passes."
        )
        if self._resume_state is not None:
            epoch, self.iteration = self._resume_state["epoch"], self._resume_state["iter"]
            self.sampler.resume_at(epoch, self.iteration - epoch * per_epoch)
        self._open_bar()
        return train_loader, self.sampler, val_loaders, epochs, self._total_iter

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration >= self._total_iter

    def iteration_done(self) -> None:
        """Count a finished iteration; save and stop when a signal has asked for it."""
        self.iteration += 1
        if self.bar is not None:
            losses = {name: f"{value:.4f}" for name, value in self.model.get_current_log().items()}
            self.bar.set_postfix(losses, refresh=False)
            self.bar.update()
        if self._stop_requested():
            self.model.save(self._epoch(), self.iteration)
            raise TrainingInterruptedError(
                f"stopped after iteration {self.iteration}; a checkpoint is saved: start again with --auto_resume"
            )

    def _make_sampler(self, opt: dict[str, Any], dataset_opt: dict[str, Any], dataset: Any) -> ResumableSampler:
        # Without processes BasicSR gives one loader the batches of all GPUs.
        batch_size = dataset_opt["batch_size_per_gpu"] * (1 if opt["dist"] else max(1, opt["num_gpu"]))
        ratio = dataset_opt.get("dataset_enlarge_ratio", 1)
        sampler = ResumableSampler(
            dataset=dataset,
            batch_size=batch_size,
            num_replicas=opt["world_size"],
            rank=opt["rank"],
            ratio=ratio,
            seed=opt["manual_seed"],
        )
        if sampler.batches == 0:
            raise TrainingDataError(
                f"datasets.train ({dataset_opt['name']}): {len(dataset)} images x dataset_enlarge_ratio {ratio} are "
                f"less than one batch of {batch_size} in each of {opt['world_size']} processes; raise "
                "dataset_enlarge_ratio or lower batch_size_per_gpu"
            )
        return sampler

    def _epoch(self) -> int:
        return self.sampler.epoch if self.sampler is not None else 0

    def _open_bar(self) -> None:
        if self.opt["rank"] != 0 or not self.opt["logger"].get("pbar", True):
            return
        self._cleanup.enter_context(logging_redirect_tqdm(loggers=[LOGGER]))
        self.bar = tqdm(
            total=self._total_iter,
            initial=self.iteration,
            unit="it",
            desc=self.opt["name"],
            dynamic_ncols=True,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )
        self._cleanup.callback(self.bar.close)

    def _catch_signals(self) -> None:
        """The first signal asks for a stop after the running iteration; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            return

        process = os.getpid()

        def request(number: int, frame: Any) -> None:
            self._signal = number
            # Ctrl-C reaches the loader's forked workers, too: they go on, so that the iteration can be finished.
            if os.getpid() == process:
                LOGGER.warning("Stopping after this iteration; a second signal stops at once and saves nothing.")
            for each, handler in previous.items():
                signal.signal(each, handler)

        previous = {number: signal.signal(number, request) for number in SIGNALS}
        self._cleanup.callback(lambda: [signal.signal(number, handler) for number, handler in previous.items()])

    def _stop_requested(self) -> bool:
        if not self.opt["dist"]:
            return self._signal is not None
        # All processes must stop after the same iteration, or the others wait for ever.
        flag = torch.tensor(int(self._signal is not None), device=self.model.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def _save_after_crash(self, error: BaseException) -> None:
        """Save the state after the last finished iteration, when the model can return to it."""
        rescue = getattr(self.model, "save_after_crash", None)
        # KeyboardInterrupt: a second signal, which asks for an immediate end.
        if rescue is not None and self.iteration > 0 and not isinstance(error, KeyboardInterrupt):
            rescue(self._epoch(), self.iteration, error)


class WatchedPrefetcher:
    """Hands on the batches of one of BasicSR's prefetchers and tells the session which iterations are finished.

    BasicSR's prefetchers start their workers when they are made and again at the first reset, before which the epoch is
    not known: so the prefetcher is only made then.
    """

    def __init__(self, make_prefetcher: Callable[[], Any], session: TrainingSession) -> None:
        self._make_prefetcher = make_prefetcher
        self._prefetcher: Any = None
        self._session = session
        self._in_iteration = False

    def reset(self) -> None:
        """Start an epoch."""
        self._in_iteration = False
        if self._session.finished:
            return
        if self._prefetcher is None:
            self._prefetcher = self._make_prefetcher()
        else:
            self._prefetcher.reset()

    def next(self) -> dict[str, Any] | None:
        """The next batch, or None at the end of the epoch."""
        if self._in_iteration:
            self._in_iteration = False
            self._session.iteration_done()
        if self._session.finished:
            # BasicSR's loop would count one iteration too many and start another pass before it notices.
            return None
        batch = self._prefetcher.next()
        self._in_iteration = batch is not None
        return batch
