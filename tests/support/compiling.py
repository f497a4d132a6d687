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

from gruve.decode.cuda import draw, int8_layers, layers, point
from gruve.decode.cuda.shapes import Sizes, Tile
from gruve.decode.cuda.triton_int8_step import INT8
from gruve.decode.cuda.triton_step import FULL, HALF, Tiling, with_head_for
from gruve.model import pointers

TARGETS = (80, 90)
INT32 = [
    "inbox",
    "outbox",
    "seen",
    "stops",
    "pointed",
    "tokens",
    "places",
    "bars",
    "states",
    "kinds",
    "advances",
    "reaches",
]
POINTERS, NO_POINTERS = (12, 16, 64, 33), (0, 0, 0, 0)
TILINGS = {"float16": HALF, "float32": FULL, "int8": INT8}
TYPES = {"float16": "*fp16", "float32": "*fp32", "int8": "*i8"}


def tensors(operand: str, names: str) -> dict[str, str]:
    """The types of a kernel's arguments: operands, integers, and fp32 for the rest."""
    kinds = {"integers": "*i64", "integer_fields": "*i64", "size": "i32", "kept": "i32"}
    kinds |= dict.fromkeys(INT32, "*i32") | {"masks": "*i8"}
    kinds |= dict.fromkeys(("W", "U", "operand", "operand_after", "reset"), operand)
    return {name: kinds.get(name, "*fp32") for name in names.split()}


def cases(tiling: Tiling, H: int, V: int):
    """(name, kernel, argument types, constants, tile) of every kernel that is launched."""
    operand = TYPES[tiling.precision]
    yield from int8_layer_cases(tiling, H, V) if tiling is INT8 else layer_cases(tiling, H, V)
    names = "integers reals inbox outbox logits_kept seen bias masks stops operand W steps b pointed gate_bias"
    names += " size kept"
    tokens = triton.next_power_of_2(V)
    head = with_head_for(tiling, tokens).head._replace(units=tokens)
    # Not as many tokens as the tile has, which need fewer registers than any other multiple of 4.
    pointed = Sizes(min(V, tokens - POINTERS[0]), H, *POINTERS)
    plain = Sizes(min(V, tokens - 4), H, *NO_POINTERS)
    for name, sizes in ({"head": pointed} if tiling is INT8 else {"head": plain, "head pointers": pointed}).items():
        yield name, draw.head_and_draw, tensors(operand, names), {"sizes": sizes}, head


def layer_cases(tiling: Tiling, H: int, V: int):
    """The layers' kernels in floating point. ROW differs from TOKEN without pointers in one address."""
    operand, tile = TYPES[tiling.precision], tiling.layer
    given = "integers x W U bias pointed pointer_rows"
    for x_name, X, fields in (
        ("below", layers.BELOW, NO_POINTERS),
        ("table", layers.TOKEN, NO_POINTERS),
        ("pointers", layers.TOKEN, POINTERS),
    ):
        kinds = {"x": operand if x_name == "below" else "*fp32"}
        constants = {"sizes": Sizes(V, H, *fields), "X": X.value}
        for cell, name in ((layers.GRU, "gru"), (layers.LSTM, "lstm"), (layers.ELMAN, "elman")):
            names = f"{given} bias_hn h c operand operand_after size"
            yield (
                f"{name} {x_name}",
                layers.layer,
                tensors(operand, names) | kinds,
                constants | {"CELL": cell.value},
                tile,
            )
        for kernel, names in (
            (layers.reset_and_update, f"{given} h operand reset update size"),
            (layers.candidate, f"{given} h reset update operand_after size"),
        ):
            yield f"{kernel.__name__} {x_name}", kernel, tensors(operand, names) | kinds, constants, tile


def int8_layer_cases(tiling: Tiling, H: int, V: int):
    """The layers' kernels in int8, and that of pointers. ROW differs from TOKEN in one address."""
    names = "integer_fields inbox tokens places bars states kinds advances reaches steps scale pointed size"
    sizes, tile = Sizes(V, H, *POINTERS), tiling.layer
    constants = {
        "sizes": sizes,
        "DISTANCES": 6,
        "TRANSPOSED": 3,
        "SCALE": 20,
        "LONGEST": 32,
        "START": 0,
        "PLACE_STEP": 6,
    }
    kinds = tensors("*i8", names) | {"steps": "*i32", "scale": "*i32"}
    yield "point", point.point, kinds, constants, Tile(1, pointers.WINDOW, 0, 4, 2)
    given = "integer_fields x W W_steps U U_steps bias pointed pointer_rows"
    for x, x_name in ((layers.BELOW, "below"), (layers.TOKEN, "table")):
        kinds = {"x": "*fp32" if x_name == "table" else "*i8"}
        constants = {"sizes": sizes, "X": x.value}
        for cell, name in ((layers.GRU, "gru"), (layers.LSTM, "lstm"), (layers.ELMAN, "elman")):
            names = f"{given} bias_hn h c operand operand_after size"
            yield (
                f"{name} {x_name}",
                int8_layers.layer,
                tensors("*i8", names) | kinds,
                constants | {"CELL": cell.value},
                tile,
            )
        for kernel, names in (
            (int8_layers.reset_and_update, f"{given} h operand reset update size"),
            (int8_layers.candidate, f"{given} h reset update operand_after size"),
        ):
            yield f"{kernel.__name__} {x_name}", kernel, tensors("*i8", names) | kinds, constants, tile


def compiled(kernel, kinds, constants, tile, capability: int, fusion: bool) -> dict[str, object]:
    """The shared memory, registers, spills, matrix and fused instructions of one kernel.

    `numbers` is how many numbers of a tile a thread computes; `loose` has the instructions that round otherwise than to
    nearest, or flush denormals.
    """
    if "tile" in kernel.arg_names:
        constants = constants | {"tile": tile}
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
        "integer_products": len(re.findall(r"mma\S*\.s32\.s8\.s8", text)),
        "fused": text.count("fma.rn.f32"),
        "numbers": tile.rows * tile.units // (32 * tile.warps),
        "loose": sorted(set(re.findall(r"\w+\.(?:approx|full)\S*|\w+\.\S*ftz\S*", text))),
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
    tiling = TILINGS[precision]
    for name, kernel, kinds, constants, tile in cases(tiling, int(H), int(V)):
        for capability in TARGETS if not wanted or name in wanted else ():
            found = compiled(
                kernel, kinds, constants, tile, capability, fusion=not name.startswith("head") and tiling is not INT8
            )
            what = {"kernel": name, "precision": precision, "H": int(H), "V": int(V), "sm": capability}
            sys.stdout.write(json.dumps(what | found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
