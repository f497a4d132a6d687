"""Compiles the Triton kernels for a GPU that need not exist, and prints one line of JSON per kernel.

It is a program of its own, because a process that interprets kernels cannot compile them: `python compiling.py float16
512 140 [KERNEL...]`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gruve.decode.cuda import draw, layers
from gruve.decode.cuda.triton_step import FULL, HALF, Tiling, head_tile

TARGETS = (80, 90)


def tensors(operand: str, names: str) -> dict[str, str]:
    """The types of a kernel's arguments: operands, integers, and fp32 for the rest."""
    kinds = {"integers": "*i64", "size": "i32", "kept": "i32"}
    kinds |= dict.fromkeys(("inbox", "outbox", "seen", "stops"), "*i32") | {"masks": "*i8"}
    kinds |= dict.fromkeys(("W", "U", "operand", "operand_after", "reset"), operand)
    return {name: kinds.get(name, "*fp32") for name in names.split()}


def cases(tiling: Tiling, H: int, V: int):
    """(name, kernel, argument types, constants, tile) of every kernel that is launched."""
    operand = "*fp16" if tiling.precision == "float16" else "*fp32"
    tile = tiling.layer
    common = {"H": H, "BM": tile.rows, "BU": tile.units, "BK": tile.depth, "PRECISION": "ieee"}
    for x, x_name in ((layers.BELOW, "below"), (layers.EMBEDDING, "embedding"), (layers.TABLE, "table")):
        K = 64 if x_name == "embedding" else H
        kinds = {"x": "*fp32" if x_name == "table" else operand}
        for cell, name in ((layers.GRU, "gru"), (layers.LSTM, "lstm"), (layers.ELMAN, "elman")):
            names = "integers x W U bias bias_hn h c operand operand_after size"
            constants = {**common, "CELL": cell.value, "X": x.value, "K": K}
            yield f"{name} {x_name}", layers.layer, tensors(operand, names) | kinds, constants, tile
        for kernel, names in (
            (layers.reset_and_update, "integers x W U bias h operand reset update size"),
            (layers.candidate, "integers x W U bias h reset update operand_after size"),
        ):
            constants = {**common, "X": x.value, "K": K}
            yield f"{kernel.__name__} {x_name}", kernel, tensors(operand, names) | kinds, constants, tile
    names = "integers reals inbox outbox logits_kept seen bias masks stops operand W b size kept"
    head = head_tile(tiling, triton.next_power_of_2(V))
    constants = {"V": V, "H": H, "BR": head.rows, "BV": triton.next_power_of_2(V), "BK": head.depth}
    yield "head", draw.head_and_draw, tensors(operand, names), {**constants, "PRECISION": "ieee"}, head


def compiled(kernel, kinds, constants, tile, capability: int, fusion: bool) -> dict[str, object]:
    """The shared memory, registers, spills and matrix instructions of one kernel."""
    signature = kinds | dict.fromkeys(constants, "constexpr")
    order = [name for name in kernel.arg_names if name in signature]
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(order) if kinds.get(name, "").startswith("*")}
    source = ASTSource(kernel, {name: signature[name] for name in order}, constexprs=constants, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": fusion}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = binary.asm["ptx"]
    return {
        "shared_bytes": binary.metadata.shared,
        **usage(text),
        "wgmma": text.count("wgmma.mma_async"),
        "mma": text.count("mma.sync"),
        "async_copies": text.count("cp.async"),
    }


def usage(ptx: str) -> dict[str, int]:
    """Registers and spilled bytes, from the assembler that comes with Triton."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        for tool in ("ptxas", "ptxas-blackwell"):  # in some versions only the second one reads Triton's output
            command = [tools / tool, "-v", f"--gpu-name={target[1]}", path, "-o", os.devnull]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if not ended.returncode:
                break
    assert not ended.returncode, ended.stderr
    # ptxas reports products that wait for each other without need, with the reason.
    assert "serialized" not in ended.stderr, ended.stderr
    numbers = {
        "registers": r"Used (\d+) registers",
        "stack_bytes": r"(\d+) bytes stack frame",
        "spilled_bytes": r"(\d+) bytes spill stores",
    }
    return {name: int(re.search(pattern, ended.stderr)[1]) for name, pattern in numbers.items()}


def main(precision: str, H: str, V: str, *wanted: str) -> None:
    """Compiles the kernels with these names, or all."""
    tiling = HALF if precision == "float16" else FULL
    for name, kernel, kinds, constants, tile in cases(tiling, int(H), int(V)):
        for capability in TARGETS if not wanted or name in wanted else ():
            found = compiled(kernel, kinds, constants, tile, capability, fusion=name != "head")
            what = {"kernel": name, "precision": precision, "H": int(H), "V": int(V), "sm": capability}
            sys.stdout.write(json.dumps(what | found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
