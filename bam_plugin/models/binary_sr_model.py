"""BinarySRModel: BasicSR's SRModel for binary networks, on CPU and GPU, in one process or several.

Options add the following: optimizers by name with groups by kind of parameter, an average of the weights with running
statistics of its own, bfloat16, micro-batches, checkpoints that are whole and resume exactly, and watches over
non-finite values, plateaus and the health of the binary layers.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bam_plugin.errors import BamError
from bam_plugin.models import autocast, health, watch
from bam_plugin.models.devices import check_devices
from bam_plugin.models.distillation import make_teacher
from bam_plugin.models.ema import AverageStatistics, move_average
from bam_plugin.models.resumable_model import ResumableSRModel
from bam_plugin.models.sync_batchnorm import synchronize_batch_norms
from bam_plugin.models.training_stages import StagedTraining
from bam_plugin.models.validation import validate
from bam_plugin.nn import set_progress
from bam_plugin.optim import SCHEDULES, build_optimizers, make_scheduler


@MODEL_REGISTRY.register()
class BinarySRModel(ResumableSRModel):
    """Trains, validates, saves and resumes a super-resolution network with binary convolutions.

    Options under `train`, beside those of BasicSR's SRModel:
        optim_g: see bam_plugin.optim.build; scheduler: BasicSR's, or one of bam_plugin.optim.SCHEDULES.
        ema_decay: average of all parameters (latent weights too). ema_bn, ema_bn_freq: whether it copies the running
            statistics or has its own, see bam_plugin.models.ema.
        precision: float32, bf16 (float parts only) or bf16_all. channels_last: memory format, for speed.
        accumulate: split each batch into this many micro-batches and average their gradients.
        grad_clip: greatest norm of all gradients together.
        sync_bn: statistics over the batches of all processes (with --launcher).
        health_freq: iterations between measurements of the binary layers for tensorboard (0: never).
        distill: a full-precision teacher, see bam_plugin.models.distillation.
        stages: full precision before binary, see bam_plugin.models.training_stages.
        watch: {nonfinite: stop | skip, max_skipped: 10, plateau: warn | stop | null, plateau_window: 1000,
            plateau_patience: 10, plateau_gain: 0.001}.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        check_devices(opt)
        self.image_results: dict[str, list[dict[str, Any]]] = {}
        self.tb_logger: Any = None
        self._ema_statistics: AverageStatistics | None = None
        super().__init__(opt)

    # -- construction -------------------------------------------------------------------------------------------------

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As in BasicSR, with DistributedDataParallel on the CPU too, and with the options that change modules."""
        train_opt = self.opt.get("train") or {}
        if train_opt.get("stages"):
            # A stage of full-precision weights does not use the parameters of the binarizers.
            self.opt["find_unused_parameters"] = True
        if self.is_train:
            autocast.prepare(net, train_opt.get("precision", "float32"))
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
        if (warning := autocast.why_slow(self.device, self.precision)) is not None:
            get_root_logger().warning(warning)
        self.channels_last = train_opt.get("channels_last", False)
        self.accumulate = train_opt.get("accumulate", 1)
        self.grad_clip = train_opt.get("grad_clip")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise BamError(f"train.accumulate must be a whole number of at least 1, found {self.accumulate!r}")
        self.health = health.HealthMonitor(net=net, freq=train_opt.get("health_freq", 0))
        self._health_scalars: dict[str, float] = {}
        self.teacher = None
        if train_opt.get("distill"):
            self.teacher = make_teacher(train_opt["distill"], net, self.device, self.load_network)
        self.stages = None
        if train_opt.get("stages"):
            nets = [net, self.net_g_ema] if self.ema_decay > 0 else [net]
            self.stages = StagedTraining(lengths=train_opt["stages"], networks=nets)
        self.nonfinite, self.plateau = watch.make_watches(train_opt.get("watch") or {})

    def setup_optimizers(self) -> None:
        """The optimizers of `train.optim_g` (Bop comes with a second one for the float parameters)."""
        self.optimizers = build_optimizers(self.get_bare_model(self.net_g), self.opt["train"]["optim_g"])
        self.optimizer_g = self.optimizers[0]
        if self.ema_decay > 0 and self.opt["path"].get("pretrain_network_g") is None:
            # Bop first replaces weights by their signs, and the average must start from the signs.
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

    def watches(self) -> dict[str, Any]:
        """The watches, which are saved and resumed, too."""
        return {"nonfinite": self.nonfinite, "plateau": self.plateau}

    # -- training -----------------------------------------------------------------------------------------------------

    def feed_data(self, data: dict[str, Any]) -> None:
        """Put a batch on the device."""
        super().feed_data(data)
        if self.is_train and self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As in BasicSR. The loop begins an iteration here, so this sets everything that follows from its number."""
        self.begin_iteration()
        # It follows from the iteration alone, so a resumed training has it, too. The average shows the stage `float`.
        for net in [self.get_bare_model(self.net_g), *([self.net_g_ema] if self.ema_decay > 0 else [])]:
            set_progress(net, min(1.0, current_iter / self.opt["train"]["total_iter"]))
        if self.stages is not None and self.stages.enter(current_iter):
            get_root_logger().info(f"Iteration {current_iter}: training stage {self.stages.stage}.")
        super().update_learning_rate(current_iter, warmup_iter)

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the optimizers on the present batch, if its loss and gradients are finite."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        scalars: dict[str, float] = {}
        measured = self.health.due(current_iter)
        with self.health.measuring(scalars) if measured else contextlib.nullcontext():
            losses = self._backward()
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))
        if self._all_finite([*losses.values(), norm]):
            self.nonfinite.finite()
            if self.grad_clip is not None:
                torch._foreach_mul_(self._gradients(), (self.grad_clip / (norm + 1e-12)).clamp(max=1.0))
            with self.stepping():
                self._step(current_iter)
        else:
            self._skip_step(current_iter)
        if (
            self.stages is not None
            and current_iter < self.opt["train"]["total_iter"]
            and self.stages.leave(current_iter)
        ):
            get_root_logger().info(
                f"Iteration {current_iter}: the latent weights take their values for the accumulation."
            )
        self.end_iteration(current_iter)
        self.log_dict = self.reduce_loss_dict(losses)
        self.log_dict["grad_norm"] = float(norm)
        if measured:
            self._log_health(scalars, current_iter)
        self._watch_plateau(losses, current_iter)

    def compute_losses(self, output: Tensor, gt: Tensor) -> OrderedDict[str, Tensor]:
        """The terms of the loss by their names in the log, each a scalar."""
        losses: OrderedDict[str, Tensor] = OrderedDict()
        if self.cri_pix:
            losses["l_pix"] = self.cri_pix(output, gt)
        if self.cri_perceptual:
            for name, value in zip(("l_percep", "l_style"), self.cri_perceptual(output, gt), strict=True):
                if value is not None:
                    losses[name] = value
        return losses

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged network towards the trained one, see move_average."""
        # Before the training starts, the average has no running statistics of its own.
        own = self._ema_statistics.own if self._ema_statistics is not None else ()
        move_average(self.net_g_ema, self.get_bare_model(self.net_g), decay, own)

    def _backward(self) -> OrderedDict[str, Tensor]:
        """Compute the gradients of the whole batch, micro-batch by micro-batch.

        Returns the detached terms of the loss.
        """
        totals: OrderedDict[str, Tensor] = OrderedDict()
        parts = list(zip(self.lq.chunk(self.accumulate), self.gt.chunk(self.accumulate), strict=True))
        for index, (lq, gt) in enumerate(parts):
            share = len(lq) / len(self.lq)
            with contextlib.ExitStack() as stack:
                if isinstance(self.net_g, DistributedDataParallel) and index < len(parts) - 1:
                    # Processes exchange gradients once per step.
                    stack.enter_context(self.net_g.no_sync())
                with autocast.autocast(self.device, self.precision):
                    output = self.net_g(lq)
                losses = self.compute_losses(output.float(), gt)
                if self.teacher is not None:
                    losses.update(self.teacher.losses(lq, output.float()))
                (torch.stack(list(losses.values())).sum() * share).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() * share
        self.output = output.detach()
        return totals

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.get_bare_model(self.net_g).parameters() if p.grad is not None]

    def _all_finite(self, values: list[Tensor]) -> bool:
        finite = torch.isfinite(torch.stack([value.float() for value in values])).all()
        if self.opt["dist"]:
            # All processes must decide alike, or their weights drift apart.
            flag = finite.int()
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
            finite = flag
        return bool(finite)

    def _step(self, current_iter: int) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)
            assert self._ema_statistics is not None  # as BasicSR does if there is an average
            self._ema_statistics.update(self.lq, current_iter)

    def _skip_step(self, current_iter: int) -> None:
        """Undo the effect of the forward pass on the running statistics, and name the layer."""
        self.restore_buffers()
        where = watch.where_not_finite(self.get_bare_model(self.net_g), self.lq, self.gt)
        self.restore_buffers()
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
        """Compute `output` by the averaged network, or else by the trained one, in evaluation mode and float32."""
        # The bare network computes: DistributedDataParallel would wait for other processes, which do not validate.
        net = getattr(self, "net_g_ema", None) or self.get_bare_model(self.net_g)
        training = net.training
        net.eval()
        with torch.no_grad():
            self.output = net(self.lq)
        net.train(training)

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        """Measure and, with `save_img`, write every image of `dataloader` (see validate)."""
        validate(self, dataloader, current_iter, tb_logger, save_img)
