"""Builds the C kernels into `bam_plugin/packed/_kernels.*`: for setup.py, or by hand (`python build.py`, in place).

Each source file is compiled with the flags of its own instruction set and the rest of the library with none, so the
library runs on any processor of its kind and picks at run time. A file that the compiler cannot build is left out; if
nothing can be built the installation goes on, and the engine uses NumPy. Only setuptools is needed: this module is
loaded by path, before the package can be imported.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
COMMON = ["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-tree-loop-distribute-patterns"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vpopcntdq", "-mavx512vnni"]
X86 = {
    "AVX2": ("isa_avx2.c", ["-mavx2", "-mfma", "-mpopcnt"]),
    "AVX512": ("isa_avx512.c", [*AVX512, "-mfma", "-mprefer-vector-width=512"]),
}
ARM = {"NEON": ("isa_neon.c", [])}


def instruction_sets() -> dict[str, tuple[str, list[str]]]:
    """What to try on this kind of processor: macro name -> (source file, compiler flags)."""
    machine = platform.machine().lower()
    return X86 if machine in ("x86_64", "amd64") else ARM if machine in ("aarch64", "arm64") else {}


class KernelExtension(Extension):
    """The library as setuptools sees it: an optional extension that is no Python module."""

    def __init__(self):
        sources = [str(path.relative_to(ROOT)) for path in sorted(HERE.glob("*.c"))]
        headers = [str(path.relative_to(ROOT)) for path in sorted(HERE.glob("*.h"))]
        super().__init__("bam_plugin.packed._kernels", sources=sources, depends=headers, optional=True)


class BuildKernels(build_ext):
    """build_ext that compiles every kernel file with flags of its own and survives a missing compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build the kernels, or say that they are missing; other extensions as usual."""
        if not isinstance(ext, KernelExtension):
            super().build_extension(ext)
            return
        try:
            self._build_kernels(ext)
        except Exception as error:
            self.warn(f"the C kernels could not be built ({error}); packed networks will run on the slower NumPy path")

    def get_ext_filename(self, fullname: str) -> str:
        """`_kernels.so`, without the tag of one Python: any Python can open the library."""
        path = Path(super().get_ext_filename(fullname))
        return str(path.with_name(path.name.partition(".")[0] + path.suffix))

    def copy_extensions_to_source(self) -> None:
        """Copy into the source tree, instead of earlier builds (whose names may have the tag of their Python)."""
        for old in HERE.parent.glob("_kernels*"):
            old.unlink()
        super().copy_extensions_to_source()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No `PyInit_` symbol: the library is opened by ctypes."""
        return ext.export_symbols or []

    def _build_kernels(self, ext: Extension) -> None:
        def compile_one(name: str, flags: list[str], macros: list[tuple[str, str]]) -> list[str]:
            return self.compiler.compile(
                [str(HERE.relative_to(ROOT) / name)],
                output_dir=self.build_temp,
                macros=macros,
                extra_postargs=[*COMMON, *flags],
                depends=ext.depends,
            )

        objects, macros = [], []
        for macro, (source, flags) in instruction_sets().items():
            try:
                objects += compile_one(source, flags, [(f"BAM_BUILD_{macro}", "1")])
                macros.append((f"BAM_BUILD_{macro}", "1"))
            except Exception as error:  # an old compiler without this instruction set
                self.warn(f"{source} is left out: {error}")
        objects += compile_one("isa_portable.c", [], [])
        objects += compile_one("engine.c", [], macros)
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, libraries=["m", "pthread"])


if __name__ == "__main__":
    os.chdir(ROOT)  # setuptools takes every path from here
    distribution = Distribution({"name": "bam-plugin", "packages": [], "ext_modules": [KernelExtension()]})
    command = BuildKernels(distribution)
    command.inplace = True
    command.build_temp = str(ROOT / "build")
    command.ensure_finalized()
    command.run()
    sys.exit(0 if list(HERE.parent.glob("_kernels*")) else 1)
