"""`bam enable` in a throw-away environment: BasicSR's own train.py and test.py run our option files, unedited."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.places import ROOT
from helpers.training_options import changed, tiny_options


class Environment:
    """A new environment that sees the libraries of this one, and in it a clone's folder with BasicSR's own scripts."""

    def __init__(self, *, folder: Path) -> None:
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env/bin/python"
        site = folder / "env" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        # Folders in a .pth file are searched, but their own .pth files are not run.
        libraries = dict.fromkeys([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        lines = list(libraries)
        if sys.version_info >= (3, 12):
            # BasicSR needs distutils, which is setuptools' since 3.12; this is what its .pth file does.
            lines.append("import _distutils_hack; _distutils_hack.add_shim()")
        (site / "libraries.pth").write_text("\n".join(lines) + "\n")
        self.hook = site / "zz_bam_plugin.pth"
        self.clone = folder / "BasicSR"
        (self.clone / "basicsr").mkdir(parents=True)
        installed = importlib.util.find_spec("basicsr")
        assert installed is not None and installed.origin is not None
        for name in ("train.py", "test.py"):
            shutil.copy(Path(installed.origin).parent / name, self.clone / "basicsr")

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.python), *arguments]
        return subprocess.run(
            command, cwd=cwd or self.clone, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )

    def bam(self, *arguments: str) -> str:
        result = self.run("-m", "bam_plugin.cli", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(folder=tmp_path_factory.mktemp("enable"))


def write(environment: Environment, name: str, options: dict[str, Any]) -> None:
    (environment.clone / name).write_text(yaml.safe_dump(options, sort_keys=False))


def test_basicsrs_own_commands(environment: Environment, tiny_pairs: Any) -> None:
    options = tiny_options(tiny_pairs, total_iter=4)
    options["methods"] = {"small": {"name": "tiny_${method}"}}
    options["method"] = "small"
    options["logger"]["use_tb_logger"] = False
    write(environment, "train.yml", options)
    assert not environment.hook.exists()
    assert environment.bam("enable").startswith("enabled: ")
    content = environment.hook.read_text()
    assert environment.bam("enable").startswith("was enabled already: ")
    assert environment.hook.read_text() == content

    result = environment.run("basicsr/train.py", "-opt", "train.yml", "--force_yml", "logger:save_checkpoint_freq=3")
    assert result.returncode == 0, result.stderr
    experiment = environment.clone / "experiments/tiny_small"
    assert (experiment / "models/net_g_latest.pth").is_file()
    # A resume, which BasicSR's own function cannot do without a GPU, goes on from iteration 3.
    result = environment.run("basicsr/train.py", "-opt", "train.yml", "--auto_resume")
    assert result.returncode == 0, result.stderr
    assert "Start training from epoch: 0, iter: 3" in result.stdout + result.stderr

    test = {**options, "datasets": {"test_1": options["datasets"]["val"]}}
    test["path"] = {"pretrain_network_g": "experiments/tiny_small/models/net_g_latest.pth"}
    test["val"] = {**options["val"], "save_img": True, "suffix": None}
    write(environment, "test.yml", test)
    result = environment.run("basicsr/test.py", "-opt", "test.yml")
    assert result.returncode == 0, result.stderr
    images = list((environment.clone / "results/tiny_small/visualization").rglob("*.png"))
    assert len(images) == len(tiny_pairs.names)

    # Mistakes in our files are named, as by `bam train`.
    write(environment, "bad.yml", {**options, "scal": 4})
    result = environment.run("basicsr/train.py", "-opt", "bad.yml")
    assert result.returncode == 2
    assert "did you mean scale?" in result.stderr and "Traceback" not in result.stderr


OTHER_PROJECT = """
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.utils.registry import ARCH_REGISTRY


class VDSR(MSRResNet):
    pass


ARCH_REGISTRY.register(VDSR)
from basicsr.train import train_pipeline

train_pipeline(".")
"""


def test_other_projects_are_left_alone_even_where_names_are_the_same(environment: Environment, tiny_pairs: Any) -> None:
    environment.bam("enable")
    options = tiny_options(tiny_pairs, total_iter=2)
    del options["val"], options["datasets"]["val"], options["train"]["ema_decay"]
    options = changed(options, {"datasets.train.type": "PairedImageDataset", "logger.use_tb_logger": False})
    options["name"], options["model_type"] = "other", "SRModel"
    options["network_g"] = {"type": "VDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1}
    options["our_own_key"] = "that only another project knows"
    write(environment, "other.yml", options)
    (environment.clone / "project.py").write_text(OTHER_PROJECT)
    result = environment.run("project.py", "-opt", "other.yml")
    assert result.returncode == 0, result.stderr
    copied = environment.clone / "experiments/other/other.yml"
    assert copied.read_text().endswith((environment.clone / "other.yml").read_text())


def test_the_hook_costs_nothing_and_goes_without_trace(environment: Environment, tmp_path: Path) -> None:
    environment.bam("enable")
    program = "import sys; print(*sorted(name for name in sys.modules if name.split('.')[0] in {}))".format(
        ("bam_plugin", "basicsr", "torch", "importlib.machinery")
    )
    result = environment.run("-c", program, cwd=tmp_path)
    assert result.stdout.split() == ["bam_plugin", "bam_plugin._startup"]
    # Without bam_plugin the interpreter starts as if nothing had been.
    libraries = environment.hook.with_name("libraries.pth")
    kept = libraries.read_text()
    libraries.write_text("")
    result = environment.run("-c", program, cwd=tmp_path)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
    libraries.write_text(kept)
    assert environment.bam("disable").startswith("disabled: ")
    assert not environment.hook.exists()
    assert environment.bam("disable").startswith("was not enabled: ")
    result = environment.run("-c", program, cwd=tmp_path)
    assert result.stdout.strip() == ""


def test_enable_refuses_an_environment_that_does_not_find_the_package(tmp_path: Path) -> None:
    environment = Environment(folder=tmp_path)
    libraries = environment.hook.with_name("libraries.pth")
    libraries.write_text(libraries.read_text().replace(f"{ROOT}\n", ""))
    result = environment.run("-m", "bam_plugin.cli", "enable", cwd=ROOT)
    assert result.returncode == 2
    assert "pip install" in result.stderr
    assert not environment.hook.exists()
