"""Training from an option file through BasicSR's `train_pipeline`.

`python -m bam_plugin.train -opt FILE`, `torchrun --nproc_per_node=2 -m bam_plugin.train -opt FILE --launcher pytorch`
and `bam train -opt FILE` are the same. Results go to `experiments/` and `tb_logger/` under the current directory.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bam_plugin.config import prepare_arguments
from bam_plugin.errors import BamError
from bam_plugin.toolbox import compat
from bam_plugin.toolbox.registration import register_everything


@contextlib.contextmanager
def pipeline_process(program: str, argv: Sequence[str], *, is_train: bool) -> Iterator[None]:
    """Prepare a process for a BasicSR pipeline, which reads `sys.argv`, prints, and keeps one logger per process.

    Inside the block everything of bam_plugin is registered, the option file in `sys.argv` is checked and expanded, and
    printed notes go to standard error. At the end the process leaves the process group that the pipeline joined.
    """
    compat.repair_pipelines()
    import torch.distributed

    register_everything()
    previous = sys.argv
    compat.forget_loggers()
    try:
        with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="bam_options_") as folder:
            sys.argv = [program, *prepare_arguments(argv, is_train=is_train, folder=folder)]
            yield
    finally:
        sys.argv = previous
        compat.forget_loggers()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(argv: Sequence[str], root_path: str | Path | None = None) -> None:
    """Run BasicSR's training pipeline with its own arguments `argv` (`-opt FILE`, `--auto_resume`, ...).

    The option file may use the additions of `bam_plugin.config` to YAML; `--method NAME` chooses among its methods.

    `root_path` holds `experiments/` and `tb_logger/` and is the current directory by default.
    """
    with pipeline_process("bam_plugin.train", argv, is_train=True):
        from basicsr.train import train_pipeline

        from bam_plugin.models.session import TrainingSession

        with TrainingSession().installed():
            train_pipeline(str(Path(root_path or Path.cwd()).resolve()))


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit code: 0 finished, 130 stopped by a signal, 2 an error that the options explain."""
    try:
        train(sys.argv[1:] if argv is None else argv)
    except BamError as error:
        sys.stderr.write(f"bam train: {type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
