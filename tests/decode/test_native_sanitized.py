"""The native library under the sanitizers: no access out of bounds, undefined behaviour, leak or data race."""

from __future__ import annotations

import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from requiring import need_program

SOURCES = Path(__file__).parents[2] / "service/gruve/decode/native"
DRIVER = Path(__file__).parents[1] / "support/native/driver.cpp"
ISA_FLAGS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"],
}
DIGESTS = "07a359e25c1d66b1 f04cad0cc8ecc19a 3cb84166f9b12276 d62d998245763386"
"""The hashes of all tokens and states of the driver, equal on every CPU: fp32 and int8, without and with pointers."""
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-math-errno", "-fno-omit-frame-pointer", "-pthread"]


def build(compiler: str, sanitizers: str, folder: Path) -> Path:
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    sources = [path for path in SOURCES.glob("*.cpp") if x86 or path.stem not in ISA_FLAGS]
    flags = [*FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", f"-I{SOURCES}"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, *ISA_FLAGS.get(source.stem, []), "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*sources, DRIVER]))
    subprocess.run([compiler, *flags, *objects, "-o", folder / "driver"], check=True)
    return folder / "driver"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_random_schedules_and_refusals_give_the_sanitizers_nothing_to_say(sanitizers, tmp_path):
    driver = build(need_program("g++", "apt-get install g++"), sanitizers, tmp_path)
    options = {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}
    ran = subprocess.run([driver], capture_output=True, text=True, env=os.environ | options, timeout=900)
    assert (ran.returncode, ran.stdout) == (0, f"OK {DIGESTS}\n"), ran.stdout + ran.stderr
