"""The GPU backend: rows stay on the device, and a call is a few CUDA graphs that run without the host.

`backend.py` implements the decode interface and does the bookkeeping. `device.py` wraps streams, graphs and pinned
memory, with a CPU form for tests. `records.py`, `pool.py` and `memory.py` define the memory layout. A step (`step.py`)
is either torch operations (`torch_step.py`) or fused Triton kernels: `triton_step.py` launches those of `layers.py` and
`draw.py`, in int8 `triton_int8_step.py` those of `int8_layers.py`, `int8_math.py` and `draw.py`; `shapes.py` has the
numbers that they are compiled for. For pointers both launch `point.py`, which reads the transcripts that `pointing.py`
keeps, and the layers add the rows of `pointer_rows.py`. `modes.py` chooses between the steps, and `exact.py` checks at
startup that the choice is exact. `interpreted.py` runs the int8 kernels without a GPU. Only the two Triton steps and
the kernels import Triton.

Tested on a CPU, where the kernels are interpreted and also compiled for sm_80 and sm_90; not run on a GPU.
"""

from gruve.decode.cuda.modes import MODES, CudaMode, cuda_backend

__all__ = ["MODES", "CudaMode", "cuda_backend"]
