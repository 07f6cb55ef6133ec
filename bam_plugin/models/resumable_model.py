"""ResumableSRModel: BasicSR's SRModel with checkpoints that are whole, resume exactly and outlive a crash."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only

from bam_plugin.models.checkpoint import (
    CheckpointSaveError,
    network_record,
    random_states_of_all,
    restore_own_random_states,
    restore_random_states,
    save_atomically,
)
from bam_plugin.models.rollback import BufferSnapshot, ScheduleSnapshot
from bam_plugin.optim import resume_optimizer, resumed_states
from bam_plugin.toolbox.networks import load_weights, read_checkpoint


class ResumableSRModel(SRModel):
    """The part of BinarySRModel that saves and resumes. It is not registered by itself.

    A model that derives from it says how far an iteration has come: `begin_iteration` before it changes anything,
    `stepping` around the steps of the optimizers, `end_iteration` behind them.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self._schedule: ScheduleSnapshot | None = None
        self._buffers: BufferSnapshot | None = None
        self._in_step = False
        self._completed = 0
        self._saved: tuple[int, int] | None = None  # epoch and iteration of the last checkpoint
        self._crashed = False
        self.order: dict[str, Any] | None = None  # of the samples, as its sampler describes it
        super().__init__(opt)

    def watches(self) -> dict[str, Any]:
        """Other objects whose state is kept, by name: they have `state_dict()` and `load_state_dict()`, or are None."""
        return {}

    def begin_iteration(self) -> None:
        """Note the state before this iteration. A failed iteration returns to it."""
        if self._buffers is None:
            self._buffers = BufferSnapshot(net=self.get_bare_model(self.net_g))
        self._buffers.take()
        self._schedule = ScheduleSnapshot(optimizers=self.optimizers, schedulers=self.schedulers)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Surround the steps of the optimizers. Weights that an error left half changed are not saved."""
        self._in_step = True
        yield
        self._in_step = False

    def end_iteration(self, current_iter: int) -> None:
        """Note that the step of this iteration is made, or left out on purpose. From here on an error keeps it."""
        self._schedule, self._completed = None, current_iter

    def restore_buffers(self) -> None:
        """Set the running statistics to their values at the beginning of the iteration."""
        assert self._buffers is not None  # since the first iteration began
        self._buffers.restore()

    def load_network(self, net: Any, load_path: str, strict: bool = True, param_key: str | None = "params") -> None:
        """BasicSR's. Raises CheckpointError, which says what is wrong with the file or what does not fit."""
        try:
            super().load_network(net, load_path, strict, param_key)  # type: ignore[arg-type]
        except Exception:
            # Read again by a reader that names each fault.
            load_weights(self.get_bare_model(net), read_checkpoint(load_path, param_key=param_key).state, load_path)
            raise

    def save(self, epoch: int, current_iter: int) -> None:
        """Save network and training state, as in BasicSR. All processes call it, and the first one writes."""
        super().save(epoch, current_iter)
        if current_iter != -1:
            self._saved = (epoch, current_iter)

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int, param_key: Any = "params") -> None:
        """BasicSR's file `models/LABEL_ITER.pth` with a record of the network's options, written atomically."""
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content: dict[str, Any] = {
            key: OrderedDict((name, value.cpu()) for name, value in self.get_bare_model(each).state_dict().items())
            for key, each in zip(keys, nets, strict=True)
        }
        content |= network_record(self.opt, net_label)
        name = "latest" if current_iter == -1 else current_iter
        save_atomically(content, Path(self.opt["path"]["models"]) / f"{net_label}_{name}.pth")

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's file `training_states/ITER.state` with random states, watches and best results, atomically."""
        if current_iter == -1:
            return
        # After a crash the other processes may not arrive here.
        random = random_states_of_all(dist=self.opt["dist"] and not self._crashed)
        if self.opt["rank"] != 0:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "optimizer_types": [type(optimizer).__name__ for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "manual_seed": self.opt.get("manual_seed"),
            "order": self.order,
            "random": random,
            **{name: each.state_dict() if each is not None else None for name, each in self.watches().items()},
            "best_metric_results": getattr(self, "best_metric_results", {}),
        }
        save_atomically(state, Path(self.opt["path"]["training_states"]) / f"{current_iter}.state")

    def validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
        """Validate, as in BasicSR.

        BasicSR saves first, so the state of this iteration gets the best results only now.
        """
        super().validation(dataloader, current_iter, tb_logger, save_img)
        if self._saved is not None and self._saved[1] == current_iter:
            self.save_training_state(*self._saved)

    def save_after_crash(
        self, epoch: int, current_iter: int, error: BaseException, random: dict[str, Any] | None = None
    ) -> None:
        """Save the state after the last complete iteration: `current_iter`, or the next one if its step is made.

        `error` broke the iteration before its step, which is undone, or after it, such as in a validation.
        `random`: the random states before the samples of the broken iteration were drawn.
        """
        self._crashed = True
        logger = get_root_logger()
        current_iter = max(current_iter, self._completed)
        if self._in_step:
            logger.error("An error interrupted the optimizer's step, so the weights are useless and are not saved.")
            return
        if self._schedule is not None:
            self._schedule.restore()
            self.restore_buffers()
            self._schedule = None
            if random is not None:
                restore_random_states(random)
        try:
            self.save(epoch, current_iter)
        except CheckpointSaveError as problem:
            logger.error(f"No checkpoint could be saved: {problem}")
            return
        if self.opt["rank"] == 0:
            logger.error(
                f"{type(error).__name__}: the state after iteration {current_iter} is saved; use --auto_resume."
            )

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Take over everything that `save_training_state` keeps. BasicSR's own states are accepted, too.

        Optimizers and schedules keep the settings of the option file, see bam_plugin.optim.resume.
        """
        states = resumed_states(self.schedulers, resume_state["schedulers"])
        types = resume_state.get("optimizer_types", [None] * len(states))
        for optimizer, state, kind in zip(self.optimizers, resume_state["optimizers"], types, strict=True):
            resume_optimizer(optimizer, state, kind)
        for scheduler, state in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(state)
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        if "random" not in resume_state:
            get_root_logger().warning("The training state holds no random states, so the resume is not exact.")
            return
        known = restore_own_random_states(resume_state["random"], rank=self.opt["rank"])
        if known != self.opt["world_size"]:
            get_root_logger().warning(
                f"The training state holds the random states of {known} of {self.opt['world_size']} processes, "
                "so the resume is not exact."
            )
        for name, each in self.watches().items():
            if each is not None and resume_state.get(name) is not None:
                each.load_state_dict(resume_state[name])
