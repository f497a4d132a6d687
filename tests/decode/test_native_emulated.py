"""The native library on 64-bit ARM, emulated: its kernels make the bits that every other CPU makes."""

from __future__ import annotations

import subprocess

import pytest

from native_driver import DIGESTS, build_driver
from requiring import need_program

CPUS = {"cortex-a72": "portable neon", "max": "portable neon dotprod"}
"""The emulated CPUs, and the kernels that each can run."""


@pytest.mark.slow
def test_kernels_for_arm_make_the_bits_of_the_others(tmp_path):
    compiler = need_program("aarch64-linux-gnu-g++", "apt-get install g++-aarch64-linux-gnu")
    emulator = need_program("qemu-aarch64", "apt-get install qemu-user")
    driver = build_driver(compiler, "aarch64", ["-O2", "-static"], tmp_path)
    emulated = {
        cpu: subprocess.Popen([emulator, "-cpu", cpu, driver], stdout=subprocess.PIPE, text=True) for cpu in CPUS
    }
    said = {cpu: process.communicate(timeout=900)[0] for cpu, process in emulated.items()}
    assert said == {cpu: f"OK {DIGESTS}\n{isas}\n" for cpu, isas in CPUS.items()}
