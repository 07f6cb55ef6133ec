"""BinarySRModel: BasicSR's SRModel for binary networks, on CPU and GPU, in one process or several.

What it adds, all by options: optimizers by name with groups by kind of parameter, an average of the weights with the
running statistics that belong to them, bfloat16, micro-batches, checkpoints that are whole and resume exactly, and
watches over non-finite values, plateaus and the health of the binary layers.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bam_plugin.errors import BamError
from bam_plugin.models import health, precision, watch
from bam_plugin.models.checkpoint import network_record, random_states, restore_random_states, save_atomically
from bam_plugin.models.distillation import make_teacher
from bam_plugin.models.ema import AverageStatistics
from bam_plugin.models.rollback import BufferSnapshot, ScheduleSnapshot
from bam_plugin.models.stages import StagedTraining
from bam_plugin.models.sync_batchnorm import synchronize_batch_norms
from bam_plugin.models.validation import validate
from bam_plugin.nn import set_progress
from bam_plugin.optim import SCHEDULES, build_optimizers, make_scheduler, resumed_states


@MODEL_REGISTRY.register()
class BinarySRModel(SRModel):
    """Trains, validates, saves and resumes a super-resolution network with binary convolutions.

    Options under `train`, beside those of BasicSR's SRModel:
        optim_g: see bam_plugin.optim.build; scheduler: BasicSR's, or one of bam_plugin.optim.SCHEDULES.
        ema_decay: average of all parameters (latent weights too). ema_bn, ema_bn_freq: its running statistics are
            copied or its own, see bam_plugin.models.ema.
        precision: float32, bf16 (float parts only) or bf16_all. channels_last: memory format, for speed.
        accumulate: split each batch into this many micro-batches of which the gradients are averaged.
        grad_clip: greatest norm of all gradients together.
        sync_bn: statistics over the batches of all processes (with --launcher).
        health_freq: iterations between measurements of the binary layers (0: never); they go to tensorboard.
        distill: a full-precision teacher, see bam_plugin.models.distillation.
        stages: full precision before binary, see bam_plugin.models.stages.
        watch: {nonfinite: stop | skip, max_skipped: 10, plateau: warn | stop | null, plateau_window: 1000,
            plateau_patience: 10, plateau_gain: 0.001}.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["num_gpu"] != 0 and not torch.cuda.is_available():
            raise BamError(f"num_gpu is {opt['num_gpu']}, but torch sees no GPU; set num_gpu to 0 or auto")
        self.image_results: dict[str, list[dict[str, Any]]] = {}
        self.tb_logger: Any = None
        self._schedule: ScheduleSnapshot | None = None
        self._ema_statistics: AverageStatistics | None = None
        self._in_step = False
        self._completed = 0
        super().__init__(opt)

    # -- construction -------------------------------------------------------------------------------------------------

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As BasicSR's; DistributedDataParallel on the CPU too, and the options that change modules."""
        train_opt = self.opt.get("train") or {}
        if train_opt.get("stages"):
            # A stage of full-precision weights leaves the binarizers' own parameters unused.
            self.opt["find_unused_parameters"] = True
        if self.is_train:
            precision.prepare(net, train_opt.get("precision", "float32"))
            if train_opt.get("channels_last", False):
                net = net.to(memory_format=torch.channels_last)
            if self.opt["dist"] and train_opt.get("sync_bn", False):
                net = synchronize_batch_norms(net)
        if self.opt["dist"] and self.device.type == "cpu":
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get("find_unused_parameters", False))
        return super().model_to_device(net)

    def init_training_settings(self) -> None:
        """Losses, optimizers and schedules of SRModel, then the watches."""
        super().init_training_settings()
        train_opt = self.opt["train"]
        if self.ema_decay > 0:
            self._ema_statistics = AverageStatistics(
                ema=self.net_g_ema, mode=train_opt.get("ema_bn", "copy"), freq=train_opt.get("ema_bn_freq", 10)
            )
        net = self.get_bare_model(self.net_g)
        self.precision = train_opt.get("precision", "float32")
        if (warning := precision.why_slow(self.device, self.precision)) is not None:
            get_root_logger().warning(warning)
        self.channels_last = train_opt.get("channels_last", False)
        self.accumulate = train_opt.get("accumulate", 1)
        self.grad_clip = train_opt.get("grad_clip")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise BamError(f"train.accumulate must be a whole number of at least 1, found {self.accumulate!r}")
        self._buffers = BufferSnapshot(net=net)
        self.health = health.HealthMonitor(net=net, freq=train_opt.get("health_freq", 0))
        self._health_scalars: dict[str, float] = {}
        self.teacher = None
        if train_opt.get("distill"):
            self.teacher = make_teacher(train_opt["distill"], net, self.device, self.load_network)
        self.stages = None
        if train_opt.get("stages"):
            nets = [net, self.net_g_ema] if self.ema_decay > 0 else [net]
            self.stages = StagedTraining(lengths=train_opt["stages"], networks=nets)
        watch_opt = train_opt.get("watch") or {}
        self.nonfinite = watch.NonFiniteWatch(
            action=watch_opt.get("nonfinite", "stop"), max_skipped=watch_opt.get("max_skipped", 10)
        )
        self.plateau = None
        if (action := watch_opt.get("plateau")) is not None:
            self.plateau = watch.PlateauWatch(
                action=action,
                window=watch_opt.get("plateau_window", 1000),
                patience=watch_opt.get("plateau_patience", 10),
                min_gain=watch_opt.get("plateau_gain", 0.001),
            )

    def setup_optimizers(self) -> None:
        """The optimizers of `train.optim_g` (Bop comes with a second one for the float parameters)."""
        self.optimizers = build_optimizers(self.get_bare_model(self.net_g), self.opt["train"]["optim_g"])
        self.optimizer_g = self.optimizers[0]
        if self.ema_decay > 0 and self.opt["path"].get("pretrain_network_g") is None:
            # Bop starts by replacing weights by their signs: the average must start from those.
            self.model_ema(0)

    def setup_schedulers(self) -> None:
        """One schedule per optimizer."""
        train_opt = self.opt["train"]
        if train_opt["scheduler"].get("type") not in SCHEDULES:
            super().setup_schedulers()
            return
        self.schedulers = [
            make_scheduler(
                optimizer,
                train_opt["scheduler"],
                total_iter=train_opt["total_iter"],
                warmup_iter=train_opt.get("warmup_iter", -1),
            )
            for optimizer in self.optimizers
        ]

    # -- training -----------------------------------------------------------------------------------------------------

    def feed_data(self, data: dict[str, Any]) -> None:
        """Put a batch on the device."""
        super().feed_data(data)
        if self.is_train and self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """BasicSR's, after noting the state before this iteration, to which a failed one returns."""
        self._schedule = ScheduleSnapshot(optimizers=self.optimizers, schedulers=self.schedulers)
        self._buffers.take()
        # It follows from the iteration alone, so a resumed training has it, too. The average shows the stage `float`.
        for net in [self.get_bare_model(self.net_g), *([self.net_g_ema] if self.ema_decay > 0 else [])]:
            set_progress(net, min(1.0, current_iter / self.opt["train"]["total_iter"]))
        if self.stages is not None and self.stages.enter(current_iter):
            get_root_logger().info(f"Iteration {current_iter}: training stage {self.stages.stage}.")
        super().update_learning_rate(current_iter, warmup_iter)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the optimizers on the present batch, unless its loss or gradients are not finite."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        scalars: dict[str, float] = {}
        measured = self.health.due(current_iter)
        with self.health.measuring(scalars) if measured else contextlib.nullcontext():
            losses = self._backward()
        norm = self._gradient_norm()
        if self._all_finite([*losses.values(), norm]):
            self.nonfinite.finite()
            self._step(current_iter)
        else:
            self._skip_step(current_iter)
        if (
            self.stages is not None
            and current_iter < self.opt["train"]["total_iter"]
            and self.stages.leave(current_iter)
        ):
            get_root_logger().info(f"Iteration {current_iter}: the latents take their values for the accumulation.")
        self._schedule, self._completed = None, current_iter
        self.log_dict = self.reduce_loss_dict(losses)
        self.log_dict["grad_norm"] = float(norm)
        if measured:
            self._log_health(scalars, current_iter)
        self._watch_plateau(losses, current_iter)

    def compute_losses(self, output: Tensor, gt: Tensor) -> OrderedDict[str, Tensor]:
        """The terms of the loss, each a scalar, by the names under which they are logged."""
        losses: OrderedDict[str, Tensor] = OrderedDict()
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(output, gt)
        if self.cri_perceptual:
            for name, value in zip(("l_percep", "l_style"), self.cri_perceptual(output, gt), strict=True):
                if value is not None:
                    losses[name] = value
        return losses

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged network towards the trained one: average <- decay average + (1 - decay) value.

        All parameters are averaged, latent weights included; buffers are copied, but for running statistics that the
        average has of its own.
        """
        net, ema = self.get_bare_model(self.net_g), self.net_g_ema
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
            # Before the training starts the average has nothing of its own.
            own = self._ema_statistics.own if self._ema_statistics is not None else set()
            for average, value in zip(ema.buffers(), net.buffers(), strict=True):
                if id(average) not in own:
                    average.copy_(value)

    def _backward(self) -> OrderedDict[str, Tensor]:
        """Gradients of the whole batch, micro-batch by micro-batch; returns the detached terms of the loss."""
        totals: OrderedDict[str, Tensor] = OrderedDict()
        parts = list(zip(self.lq.chunk(self.accumulate), self.gt.chunk(self.accumulate), strict=True))
        for index, (lq, gt) in enumerate(parts):
            share = len(lq) / len(self.lq)
            with contextlib.ExitStack() as stack:
                if isinstance(self.net_g, DistributedDataParallel) and index < len(parts) - 1:
                    # Processes exchange gradients once per step.
                    stack.enter_context(self.net_g.no_sync())
                with precision.autocast(self.device, self.precision):
                    output = self.net_g(lq)
                losses = self.compute_losses(output.float(), gt)
                if self.teacher is not None:
                    losses.update(self.teacher.losses(lq, output.float()))
                (torch.stack(list(losses.values())).sum() * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() * share
        self.output = output.detach()
        return totals

    def _gradient_norm(self) -> Tensor:
        """Norm of all gradients together, before they are clipped to `grad_clip`."""
        gradients = [p.grad for p in self.get_bare_model(self.net_g).parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.grad_clip is not None:
            torch._foreach_mul_(gradients, (self.grad_clip / (norm + 1e-12)).clamp(max=1.0))
        return norm

    def _all_finite(self, values: list[Tensor]) -> bool:
        finite = torch.isfinite(torch.stack([value.float() for value in values])).all()
        if self.opt["dist"]:
            # All processes must decide alike, or their weights part.
            flag = finite.int()
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
            finite = flag
        return bool(finite)

    def _step(self, current_iter: int) -> None:
        self._in_step = True
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
            assert self._ema_statistics is not None  # as always where there is an average
            self._ema_statistics.update(self.lq, current_iter)
        self._in_step = False

    def _skip_step(self, current_iter: int) -> None:
        """Undo the effect of the forward pass on the running statistics, and name the layer."""
        self._buffers.restore()
        net = self.get_bare_model(self.net_g)
        # In every process, whatever its batch: synchronized normalizations wait for each other.
        layer = watch.first_nonfinite_module(net, lambda: net(self.lq))
        if not bool(torch.isfinite(self.lq).all() and torch.isfinite(self.gt).all()):
            where = "the batch holds non-finite values"
        elif layer is not None:
            where = f"the output of {layer} is not finite"
        elif (name := watch.last_nonfinite_gradient(net.named_parameters())) is not None:
            where = f"the gradient of {name} is not finite"
        else:
            where = "the loss is not finite although the network's output is"
        self._buffers.restore()
        get_root_logger().warning(self.nonfinite.not_finite(current_iter, where))

    def _watch_plateau(self, losses: OrderedDict[str, Tensor], current_iter: int) -> None:
        if self.plateau is None:
            return
        loss = torch.stack(list(losses.values())).sum()
        if self.opt["dist"]:
            # One value for all processes, so that all stop together.
            torch.distributed.all_reduce(loss)
            loss /= self.opt["world_size"]
        if bool(torch.isfinite(loss)):
            describe = partial(health.worst_layers, self._health_scalars)
            if (warning := self.plateau.update(float(loss), current_iter, describe)) is not None:
                get_root_logger().warning(warning)

    def _log_health(self, scalars: dict[str, float], current_iter: int) -> None:
        images = len(self.lq) * self.opt["world_size"]
        self._health_scalars = {**scalars, **self.health.throughput(current_iter, images)}
        self.log_dict.update(health.means(scalars))
        if self.tb_logger is not None:
            for name, value in self._health_scalars.items():
                self.tb_logger.add_scalar(f"health/{name}", value, current_iter)

    # -- validation ---------------------------------------------------------------------------------------------------

    def test(self) -> None:
        """`output` of the averaged network, or else of the trained one, in evaluation mode and float32."""
        # The bare network: DistributedDataParallel would wait for the other processes, which do not validate.
        net = getattr(self, "net_g_ema", None) or self.get_bare_model(self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = net(self.lq)
        net.train(training)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Measure and, with `save_img`, write every image of `dataloader` (see validate)."""
        validate(self, dataloader, current_iter, tb_logger, save_img)

    # -- checkpoints --------------------------------------------------------------------------------------------------

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

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """BasicSR's file `training_states/ITER.state` with random states, watches and best results, atomically."""
        if current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": random_states(),
            "nonfinite": self.nonfinite.state_dict(),
            "plateau": self.plateau.state_dict() if self.plateau is not None else None,
            "best_metric_results": getattr(self, "best_metric_results", {}),
        }
        save_atomically(state, Path(self.opt["path"]["training_states"]) / f"{current_iter}.state")

    def save_after_crash(self, epoch: int, current_iter: int, error: BaseException) -> None:
        """Save the state after the last complete iteration: `current_iter`, or the next one when its step was made.

        `error` broke the iteration before its step (which is undone), or what followed the step, such as a validation.
        """
        logger = get_root_logger()
        current_iter = max(current_iter, self._completed)
        if self._in_step:
            logger.error("The optimizer's step was interrupted: the weights are of no use and are not saved.")
            return
        if self._schedule is not None:
            self._schedule.restore()
            self._buffers.restore()
            self._schedule = None
        try:
            self.save(epoch, current_iter)
        except OSError as problem:
            logger.error(f"No checkpoint could be saved: {problem}")
            return
        logger.error(f"{type(error).__name__}: the state after iteration {current_iter} is saved; use --auto_resume.")

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Take over everything that `save_training_state` keeps; accepts BasicSR's own states too.

        Schedules keep the settings of the option file, see `resumed_states`.
        """
        states = resumed_states(self.schedulers, resume_state["schedulers"])
        super().resume_training({**resume_state, "schedulers": states})
        if resume_state.get("best_metric_results"):
            self.best_metric_results = resume_state["best_metric_results"]
        if "random" not in resume_state:
            get_root_logger().warning("The training state holds no random states: resuming is not exact.")
            return
        restore_random_states(resume_state["random"])
        self.nonfinite.load_state_dict(resume_state["nonfinite"])
        if self.plateau is not None and resume_state["plateau"] is not None:
            self.plateau.load_state_dict(resume_state["plateau"])
