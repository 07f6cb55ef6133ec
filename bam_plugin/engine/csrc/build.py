"""Builds the C libraries of the package: for setup.py, or by hand (`python build.py`, in place).

`bam_plugin/engine/_kernels.*` is the packed engine. Each of its source files is compiled with the flags of its own
instruction set and the rest of the library with none, so the library runs on any processor of its kind and picks at run
time. A file that the compiler cannot build is left out. `bam_plugin/nn/fast/_training.*` are passes of the training,
with OpenMP. A library that cannot be built is left out, too: the installation goes on, and NumPy or torch computes
instead. Only setuptools is needed: this module is loaded by path, before the package can be imported.
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


class Library(Extension):
    """A library as setuptools sees it: an optional extension that is no Python module.

    name: dotted, as that of a module. folder: with its sources. without: what happens where it cannot be built.
    """

    def __init__(self, name: str, folder: Path, without: str):
        sources, headers = (
            [str(path.relative_to(ROOT)) for path in sorted(folder.glob(end))] for end in ("*.c", "*.h")
        )
        super().__init__(name, sources=sources, depends=headers, optional=True)
        self.without = without


KERNELS = Library("bam_plugin.engine._kernels", HERE, "packed networks will run on the slower NumPy path")
TRAINING = Library(
    "bam_plugin.nn.fast._training", ROOT / "bam_plugin/nn/fast/csrc", "binary networks will train a little slower"
)
LIBRARIES = (KERNELS, TRAINING)


class BuildLibraries(build_ext):
    """build_ext that compiles every kernel file with flags of its own and survives a missing compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build a library, or say that it is missing; other extensions as usual."""
        if not isinstance(ext, Library):
            super().build_extension(ext)
            return
        try:
            (self._build_kernels if ext.name == KERNELS.name else self._build_training)(ext)
        except Exception as error:
            self.warn(f"{ext.name} could not be built ({error}); {ext.without}")

    def get_ext_filename(self, fullname: str) -> str:
        """`_kernels.so`, without the tag of one Python: any Python can open the library."""
        path = Path(super().get_ext_filename(fullname))
        return str(path.with_name(path.name.partition(".")[0] + path.suffix))

    def copy_extensions_to_source(self) -> None:
        """Copy into the source tree, instead of earlier builds (whose names may have the tag of their Python)."""
        for old in [path for library in LIBRARIES for path in built(library)]:
            old.unlink()
        super().copy_extensions_to_source()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No `PyInit_` symbol: the library is opened by ctypes."""
        return ext.export_symbols or []

    def _build_training(self, ext: Library) -> None:
        objects = [self._compile(ext, source, ["-fopenmp", "-Wno-psabi"]) for source in ext.sources]
        # Not linked with an OpenMP: it is to use torch's, see bam_plugin/nn/fast/native.py.
        self._link(ext, objects, [])

    def _build_kernels(self, ext: Library) -> None:
        folder, objects, macros = HERE.relative_to(ROOT), [], []
        for macro, (source, flags) in instruction_sets().items():
            try:
                objects.append(self._compile(ext, folder / source, flags, [(f"BAM_BUILD_{macro}", "1")]))
                macros.append((f"BAM_BUILD_{macro}", "1"))
            except Exception as error:  # an old compiler without this instruction set
                self.warn(f"{source} is left out: {error}")
        objects.append(self._compile(ext, folder / "isa_portable.c", []))
        objects.append(self._compile(ext, folder / "engine.c", [], macros))
        self._link(ext, objects, ["-pthread"])

    def _compile(
        self, ext: Library, source: str | Path, flags: list[str], macros: list[tuple[str, str]] | None = None
    ) -> str:
        (result,) = self.compiler.compile(
            [str(source)],
            output_dir=self.build_temp,
            macros=macros,
            extra_postargs=[*COMMON, *flags],
            depends=ext.depends,
        )
        return result

    def _link(self, ext: Library, objects: list[str], flags: list[str]) -> None:
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, libraries=["m"], extra_postargs=flags)


def built(library: Library) -> list[Path]:
    """The files of `library` in the source tree."""
    package, _, name = library.name.rpartition(".")
    return list((ROOT / package.replace(".", "/")).glob(f"{name}*"))


if __name__ == "__main__":
    os.chdir(ROOT)  # setuptools takes every path from here
    distribution = Distribution({"name": "bam-plugin", "packages": [], "ext_modules": list(LIBRARIES)})
    command = BuildLibraries(distribution)
    command.inplace = True
    command.build_temp = str(ROOT / "build")
    command.ensure_finalized()
    command.run()
    sys.exit(0 if all(built(library) for library in LIBRARIES) else 1)
