"""Builds the native decode backend: a plain shared library, one object per instruction set, no Python in it.

`GRUVE_NATIVE=0 pip install ...` leaves it out; the reference backend then does the work.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

NATIVE = Path("service/gruve/decode/native")
LIBRARY = "gruve.decode.native.libgruve_native"
# -ffp-contract=off: an operation is fused where the source says so, or the bits would depend on the compiler.
FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"),
]
# The sources that one kind of machine compiles. Instructions beyond its baseline may stand in these objects alone; the
# CPU is asked for them at run time.
X86_FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": [
        *("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 finds them in its own immintrin.h
    ],
}
ARM_FLAGS = {"kernels_neon.cpp": [], "kernels_dotprod.cpp": ["-march=armv8.2-a+dotprod"]}
ISA_FLAGS = {"x86_64": X86_FLAGS, "amd64": X86_FLAGS, "aarch64": ARM_FLAGS, "arm64": ARM_FLAGS}.get(
    platform.machine().lower(), {}
)
WANTED = os.environ.get("GRUVE_NATIVE", "1") != "0"


class BuildNative(build_ext):
    """Compiles each source with its own flags and links them into a library whose name has no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library goes, seen from the root of the packages."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Builds the library; a failure says why and how to do without."""
        try:
            objects = []
            for source in ext.sources:
                flags = FLAGS + ISA_FLAGS.get(Path(source).name, [])
                objects += self.compiler.compile(
                    [source], output_dir=self.build_temp, depends=ext.depends, extra_postargs=flags
                )
            self.compiler.link_shared_object(
                objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++"
            )
        except (CompileError, LinkError) as error:
            raise BaseError(
                f"the native decode backend could not be built ({error}). It needs a C++17 compiler, such as GCC 12 or "
                "Clang 14. To install without it, on the slower reference backend: GRUVE_NATIVE=0 pip install ..."
            ) from error


class PlatformWheel(bdist_wheel):
    """Tags the wheel for the platform and no Python version: the library is loaded with ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        """(python, abi, platform)"""
        python, abi, platform_tag = super().get_tag()
        return ("py3", "none", platform_tag) if WANTED else (python, abi, platform_tag)


def sources() -> list[str]:
    """Every source that this machine can compile."""
    others = {*X86_FLAGS, *ARM_FLAGS} - {*ISA_FLAGS}
    return sorted(str(path) for path in NATIVE.glob("*.cpp") if path.name not in others)


setup(
    ext_modules=[Extension(LIBRARY, sources(), depends=sorted(map(str, NATIVE.glob("*.h"))), language="c++")]
    if WANTED
    else [],
    exclude_package_data={"": ["*.cpp", "*.h"]},
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
