"""The GPU path: rows live on the device, and a call is a few CUDA graphs of steps that never ask the host.

`backend.py` keeps the decode contract and the bookkeeping; `device.py` is the seam to streams, graphs and pinned
memory, with a form for the CPU; `records.py`, `pool.py` and `memory.py` say what lies where. A step is either torch
operations (`torch_step.py`) or fused Triton kernels (`triton_step.py`, which launches those of `layers.py` and
`draw.py`); `modes.py` chooses and `exact.py` proves the choice. Nothing here but `triton_step.py` and the kernels
imports Triton.

Tested on a CPU, kernels included, by interpretation and by compiling them for sm_80 and sm_90; not run on a GPU.
"""

from gruve.decode.cuda.modes import MODES, CudaMode, cuda_backend

__all__ = ["MODES", "CudaMode", "cuda_backend"]
