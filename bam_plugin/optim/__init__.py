"""Optimizers for binary networks. An option file names one, and rules group the parameters by what they are.

`OPTIMIZER_REGISTRY` holds every optimizer of torch and, for binary networks, BinaryAdam, Bop and Bop2ndOrder.
`build_optimizers` makes them for a network from options. `make_scheduler` makes their learning-rate schedules.
"""

from __future__ import annotations

from bam_plugin.optim.binary_adam import BinaryAdam
from bam_plugin.optim.bop import Bop, Bop2ndOrder
from bam_plugin.optim.build import build_optimizers
from bam_plugin.optim.groups import KINDS, Rule, assign, parameter_kinds
from bam_plugin.optim.registry import OPTIMIZER_REGISTRY, OptimizerInfo, describe_optimizers
from bam_plugin.optim.resume import resume_optimizer, resumed_states
from bam_plugin.optim.schedules import SCHEDULES, make_scheduler, resolve_epochs

__all__ = [
    "KINDS",
    "OPTIMIZER_REGISTRY",
    "SCHEDULES",
    "BinaryAdam",
    "Bop",
    "Bop2ndOrder",
    "OptimizerInfo",
    "Rule",
    "assign",
    "build_optimizers",
    "describe_optimizers",
    "make_scheduler",
    "parameter_kinds",
    "resolve_epochs",
    "resume_optimizer",
    "resumed_states",
]
