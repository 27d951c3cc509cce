"""Builds the one native module; everything else is in pyproject.toml.

The C core is compiled strictly; what Cython generates is not ours to keep free of warnings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
NATIVE = ("ring", "pack", "frame", "resp")
OPTIMIZE = ["-O3", "-std=c11", "-fno-strict-aliasing", "-fstack-protector-strong"]
STRICT = ["-Wall", "-Wextra", "-Wshadow", "-Wpointer-arith", "-Wstrict-prototypes", "-fstrict-aliasing"]
# A warning that a later compiler invents must not keep a released source package from being installed: PKG-INFO is only in those.
if not (ROOT / "PKG-INFO").exists() or os.environ.get("HDAD_WERROR") == "1":
    STRICT.append("-Werror")


class BuildExt(build_ext):  # type: ignore[misc]
    """Gives files of the C core flags that the generated file does not get."""

    def build_extension(self, ext: Extension) -> None:
        compiler: Any = self.compiler
        compile_one = compiler._compile

        def compile_with_flags(obj: str, src: str, ext_: str, cc_args: list[str], extra: list[str], pp_opts: list[str]) -> None:
            own = STRICT if Path(src).parent.name == "native" else ["-Wno-unused-parameter"]
            compile_one(obj, src, ext_, cc_args, [*extra, *own], pp_opts)

        compiler._compile = compile_with_flags
        try:
            super().build_extension(ext)
        finally:
            compiler._compile = compile_one


core = Extension(
    "hdad._core",
    sources=["hdad/_core.pyx", *(f"hdad/native/{name}.c" for name in NATIVE)],
    depends=["hdad/_record.pxi", "hdad/native/frame_layout.h", *(f"hdad/native/{name}.h" for name in NATIVE)],
    include_dirs=["hdad"],
    extra_compile_args=OPTIMIZE,
)

setup(ext_modules=cythonize([core]), cmdclass={"build_ext": BuildExt})
