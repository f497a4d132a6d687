"""The native library under the sanitizers: no access out of bounds, undefined behaviour, leak or data race."""

from __future__ import annotations

import os
import platform
import subprocess

import pytest

from native_driver import DIGESTS, build_driver
from natively import ISAS
from requiring import need_program

FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_random_schedules_and_refusals_give_the_sanitizers_nothing_to_say(sanitizers, tmp_path):
    compiler = need_program("g++", "apt-get install g++")
    driver = build_driver(compiler, platform.machine(), [*FLAGS, f"-fsanitize={sanitizers}"], tmp_path)
    options = {"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1", "TSAN_OPTIONS": "halt_on_error=1"}
    ran = subprocess.run([driver], capture_output=True, text=True, env=os.environ | options, timeout=900)
    said, isas = ran.stdout.splitlines() if ran.returncode == 0 else (ran.stdout, "")
    assert (ran.returncode, said) == (0, f"OK {DIGESTS}"), ran.stdout + ran.stderr
    assert {*isas.split()} == {*ISAS}
