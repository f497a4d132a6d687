"""Builds the program that drives the native library through its C ABI, `native/driver.cpp`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "service/gruve/decode/native"
DRIVER = Path(__file__).parent / "native/driver.cpp"
DIGESTS = "07a359e25c1d66b1 f04cad0cc8ecc19a 28567f502d6b735d 4d2c89d4df25aaa3"
"""The hashes of all tokens and states of the driver, equal on every CPU: fp32 and int8, without and with pointers."""
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-pthread", f"-I{SOURCES}"]
X86_FLAGS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"],
}
ARM_FLAGS = {"kernels_neon": [], "kernels_dotprod": ["-march=armv8.2-a+dotprod"]}


def build_driver(compiler: str, machine: str, flags: Sequence[str], folder: Path) -> Path:
    """Compiles the library's sources for `machine`, as `platform.machine` names it, and links them with the driver."""
    own = {"x86_64": X86_FLAGS, "aarch64": ARM_FLAGS}.get(machine, {})
    others = {*X86_FLAGS, *ARM_FLAGS} - {*own}
    command = [compiler, *FLAGS, *flags]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([*command, *own.get(source.stem, []), "-c", source, "-o", target], check=True)
        return target

    sources = [path for path in sorted(SOURCES.glob("*.cpp")) if path.stem not in others]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*sources, DRIVER]))
    subprocess.run([*command, *objects, "-o", folder / "driver"], check=True)
    return folder / "driver"
