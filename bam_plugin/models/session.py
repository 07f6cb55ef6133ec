"""What surrounds BasicSR's training loop: data in a resumable order, progress, a clean stop, a checkpoint on a crash.

BasicSR's `train_pipeline` runs unchanged. A `TrainingSession` replaces the functions it calls to build its parts
(for the duration of the run) and watches its iterations through the prefetcher, which the loop asks for a batch exactly
once per iteration, after everything else of the previous iteration (saving, validation) is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bam_plugin.errors import BamError
from bam_plugin.models.checkpoint import random_states, restore_random_states, tidy_up
from bam_plugin.models.curves import ForgivingWriter
from bam_plugin.models.loaders import TrainingData, go_on_at, make_loaders
from bam_plugin.optim.schedules import check_restart_schedule, resolve_epochs
from bam_plugin.toolbox import compat
from bam_plugin.toolbox.resuming import saved_states

LOGGER = logging.getLogger("basicsr")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(BamError):
    """A signal ended the training; a checkpoint was saved and the training can be resumed."""

    exit_code = 130


class TrainingStartError(BamError):
    """A training cannot start from what its options name."""


class TrainingSession:
    """One run of BasicSR's `train_pipeline`, made resumable and interruptible; use `with session.installed():`."""

    def __init__(self) -> None:
        self.opt: dict[str, Any] = {}
        self.model: Any = None
        self.tb_logger: Any = None
        self.data: TrainingData | None = None
        self.iteration = 0
        self._notes: list[str] = []  # to be logged as soon as there is a log
        self._seed_given = False
        # The random states before the samples of the running iteration were drawn; None until the first iteration.
        self._random: dict[str, Any] | None = None
        self._drawing = False
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
            self._seed_given = _gives_seed(parsed)
            self._notes += resolve_epochs(opt["train"])
            check_restart_schedule(opt["train"].get("scheduler") or {}, opt["train"]["total_iter"])
            if opt["dist"]:
                # Without manual_seed each process has drawn its own: their orders would overlap.
                seed = [opt["manual_seed"]]
                torch.distributed.broadcast_object_list(seed, src=0)
                opt["manual_seed"] = seed[0]
            return opt, parsed

        def init_tb_loggers(opt: dict[str, Any]) -> Any:
            writer = make_tb_logger(opt)
            self.tb_logger = ForgivingWriter(writer=writer) if writer is not None else None
            return self.tb_logger

        def build_model(opt: dict[str, Any]) -> Any:
            self.model = make_model(opt)
            self.model.tb_logger = self.tb_logger
            self.model.order = self.data.sampler.order if self.data is not None else None
            return self.model

        def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
            self.opt = opt
            self._resume_state = state = load_state(opt)
            newest = saved_states(opt["path"]["training_states"])
            if opt.get("auto_resume") and state is not None and newest[0] != Path(opt["path"]["resume_state"]):
                self._notes.append(f"{newest[0].name} or its network is damaged: an older state is resumed.")
            if state is None:
                _refuse_own_weights(opt)
            if state is not None and not self._seed_given and state.get("manual_seed") is not None:
                self._notes.append(f"manual_seed is that of the training state, {state['manual_seed']}.")
                opt["manual_seed"] = state["manual_seed"]
            return state

        with (
            compat.replaced(
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
        """In place of BasicSR's `create_train_val_dataloader`, which is called when its log is open."""
        for note in self._notes:
            logger.info(note)
        if opt["rank"] == 0:
            for path in tidy_up(opt):
                logger.info(f"Removed {path}, which a killed training left unfinished.")
        self.data = make_loaders(opt, logger)
        if self._resume_state is not None:
            self.iteration = self._resume_state["iter"]
            go_on_at(self.data, self._resume_state, logger)
        self._open_bar()
        return self.data.train, self.data.sampler, self.data.validation, self.data.passes, self.data.total_iter

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.data is not None and self.iteration >= self.data.total_iter

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Around the drawing of an iteration's samples: notes what a failed iteration returns to."""
        self._random, self._drawing = random_states(), True
        yield
        self._drawing = False

    def iteration_done(self) -> None:
        """Count a finished iteration; save after the last one, and save and stop when a signal has asked for it."""
        self.iteration += 1
        if self.bar is not None:
            losses = {name: f"{value:.4f}" for name, value in self.model.get_current_log().items()}
            self.bar.set_postfix(losses, refresh=False)
            self.bar.update()
        stop = self._stop_requested()
        if stop or (self.finished and self.iteration % self.opt["logger"]["save_checkpoint_freq"]):
            self.model.save(self._pass(), self.iteration)
        if stop:
            if self.opt["dist"]:
                # A process that ends earlier makes the launcher end the one that still writes.
                torch.distributed.barrier()
            raise TrainingInterruptedError(
                f"stopped after iteration {self.iteration}; a checkpoint is saved: start again with --auto_resume"
            )

    def _open_bar(self) -> None:
        if self.opt["rank"] != 0 or not self.opt["logger"].get("pbar", True):
            return
        self._cleanup.enter_context(logging_redirect_tqdm(loggers=[LOGGER]))
        self.bar = tqdm(
            total=self.data.total_iter if self.data is not None else None,
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
        # Before the first iteration there is nothing to save that is not on disk: a failed resume must not replace it.
        # KeyboardInterrupt: a second signal, which asks for an immediate end.
        if rescue is None or self._random is None or self.iteration == 0 or isinstance(error, KeyboardInterrupt):
            return
        if self._drawing:
            restore_random_states(self._random)
        rescue(self._pass(), self.iteration, error, self._random)

    def _pass(self) -> int:
        """The pass of the last finished iteration, as BasicSR's loop counts it."""
        assert self.data is not None  # as soon as there are iterations
        return self.data.pass_of(self.iteration)


def _refuse_own_weights(opt: dict[str, Any]) -> None:
    """Refuse to start from weights in the folder of an experiment that BasicSR is about to rename."""
    own = Path(opt["path"]["experiments_root"]).resolve()
    for key, value in opt["path"].items():
        if key.startswith("pretrain_network") and value and Path(value).resolve().is_relative_to(own):
            raise TrainingStartError(
                f"path.{key} is {value}, in the folder of an earlier training of this name, which a new training "
                "renames: give the new one another `name`, or go on with the earlier one by --auto_resume"
            )


def _gives_seed(arguments: Any) -> bool:
    """Whether the option file or the command line say the seed; else BasicSR draws one."""
    given = yaml.safe_load(Path(arguments.opt).read_text()).get("manual_seed") is not None
    return given or any(entry.partition("=")[0].strip() == "manual_seed" for entry in arguments.force_yml or ())


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
        with self._session.drawing():
            batch = self._prefetcher.next()
        self._in_iteration = batch is not None
        return batch
