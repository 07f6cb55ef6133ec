"""BasicSR's own train.py and test.py, and those of other projects, run our option files, unedited or with one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.places import ROOT
from helpers.training_options import changed, tiny_options


class Clone:
    """A folder like a clone of BasicSR: its scripts, and nothing of this package."""

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder / "BasicSR"
        (self.folder / "basicsr").mkdir(parents=True)
        installed = importlib.util.find_spec("basicsr")
        assert installed is not None and installed.origin is not None
        for name in ("train.py", "test.py"):
            shutil.copy(Path(installed.origin).parent / name, self.folder / "basicsr")

    def write(self, name: str, options: dict[str, Any]) -> None:
        (self.folder / name).write_text(yaml.safe_dump(options, sort_keys=False))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def bam_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "bam_plugin", "run", *arguments)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(folder=tmp_path)


def methods_options(tiny_pairs: Any, **changes: Any) -> dict[str, Any]:
    """Options that BasicSR alone cannot read."""
    options = tiny_options(tiny_pairs, total_iter=4)
    options["methods"] = {"small": {"name": "tiny_${method}"}}
    options["method"] = "small"
    options["logger"]["use_tb_logger"] = False
    return {**options, **changes}


def test_bam_run_trains_resumes_and_tests_by_basicsrs_own_scripts(clone: Clone, tiny_pairs: Any) -> None:
    options = methods_options(tiny_pairs)
    clone.write("train.yml", options)
    result = clone.bam_run("basicsr/train.py", "-opt", "train.yml", "--force_yml", "logger:save_checkpoint_freq=3")
    assert result.returncode == 0, result.stderr
    experiment = clone.folder / "experiments/tiny_small"
    if not experiment.is_dir():  # BasicSR's scripts take the folder above their own for the root
        experiment = next(clone.folder.rglob("experiments/tiny_small"))
    assert (experiment / "models/net_g_latest.pth").is_file()
    # A resume, which BasicSR's own function cannot do without a GPU, goes on from iteration 3.
    result = clone.bam_run("basicsr/train.py", "-opt", "train.yml", "--auto_resume")
    assert result.returncode == 0, result.stderr
    assert "Start training from epoch: 0, iter: 3" in result.stdout + result.stderr

    test = {**options, "datasets": {"test_1": options["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": str(experiment / "models/net_g_latest.pth")}
    test["val"] = {**options["val"], "save_img": True, "suffix": None}
    clone.write("test.yml", test)
    result = clone.bam_run("basicsr/test.py", "-opt", "test.yml")
    assert result.returncode == 0, result.stderr
    assert len(list(clone.folder.rglob("results/tiny_small/visualization/*/*.png"))) == len(tiny_pairs.names)


def test_mistakes_are_named_as_by_bam_train(clone: Clone, tiny_pairs: Any) -> None:
    clone.write("bad.yml", methods_options(tiny_pairs, scal=4))
    result = clone.bam_run("basicsr/train.py", "-opt", "bad.yml")
    assert result.returncode == 2
    assert "did you mean scale?" in result.stderr and "Traceback" not in result.stderr
    result = clone.bam_run("basicsr/trane.py", "-opt", "bad.yml")
    assert result.returncode == 2
    assert "there is no script basicsr/trane.py" in result.stderr


# The line before BasicSR is imported, as documented, and after it.
PIPELINE = "from basicsr.train import train_pipeline\n"
LINES = (f"import bam_plugin\n{PIPELINE}", f"{PIPELINE}import bam_plugin\n")


@pytest.mark.parametrize("lines", LINES)
def test_one_line_in_a_training_script_is_enough(clone: Clone, tiny_pairs: Any, lines: str) -> None:
    clone.write("train.yml", methods_options(tiny_pairs))
    # What a project on top of BasicSR has; the first line only stands for an older torchvision.
    repair = "from bam_plugin.toolbox import compat; compat.apply()\n" if lines.startswith("from basicsr") else ""
    (clone.folder / "train.py").write_text(f"{repair}{lines}train_pipeline('.')\n")
    result = clone.python("train.py", "-opt", "train.yml")
    assert result.returncode == 0, result.stderr
    assert (clone.folder / "experiments/tiny_small/models/net_g_latest.pth").is_file()
    assert "method: " not in (clone.folder / "experiments/tiny_small/train.yml").read_text()


OTHER_PROJECT = """
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.utils.registry import ARCH_REGISTRY


class VDSR(MSRResNet):
    pass


ARCH_REGISTRY.register(VDSR)
from basicsr.train import train_pipeline

train_pipeline(".")
"""


def test_other_projects_are_left_alone_even_where_names_are_the_same(clone: Clone, tiny_pairs: Any) -> None:
    options = tiny_options(tiny_pairs, total_iter=2)
    del options["val"], options["datasets"]["val"], options["train"]["ema_decay"]
    options = changed(options, {"datasets.train.type": "PairedImageDataset", "logger.use_tb_logger": False})
    options["name"], options["model_type"] = "other", "SRModel"
    options["network_g"] = {"type": "VDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    options["our_own_key"] = "that only another project knows"
    clone.write("other.yml", options)
    (clone.folder / "project.py").write_text(OTHER_PROJECT)
    result = clone.bam_run("project.py", "-opt", "other.yml")
    assert result.returncode == 0, result.stderr
    copied = clone.folder / "experiments/other/other.yml"
    assert copied.read_text().endswith((clone.folder / "other.yml").read_text())


def test_a_script_keeps_its_errors_its_arguments_and_its_folder(clone: Clone) -> None:
    (clone.folder / "scripts").mkdir()
    (clone.folder / "scripts/beside.py").write_text("NAME = 'beside'\n")
    (clone.folder / "scripts/show.py").write_text(
        "import sys, beside\nprint(sys.argv, beside.NAME, __name__)\nopen(sys.argv[2])\n"
    )
    result = clone.bam_run("scripts/show.py", "--flag", "no_such_file")
    assert result.stdout.strip() == "['scripts/show.py', '--flag', 'no_such_file'] beside __main__"
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "no_such_file" in result.stderr


def test_an_import_waits_once_and_goes_when_basicsr_has_come() -> None:
    program = (
        "import sys, bam_plugin, importlib\nfrom bam_plugin.toolbox import arrival\narrival.await_basicsr()\n"
        "count = lambda: sum(isinstance(each, arrival._BasicSRFinder) for each in sys.meta_path)\n"
        "print(count(), 'torch' in sys.modules)\n"
        "import basicsr.train, basicsr.utils.options as options\narrival.await_basicsr()\n"
        "parse = options.parse_options\n"
        "print(count(), hasattr(parse, '__wrapped__'), hasattr(parse.__wrapped__, '__wrapped__'), "
        "basicsr.train.parse_options is parse)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "False", "0", "True", "False", "True"]
