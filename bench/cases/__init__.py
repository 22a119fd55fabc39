"""What is measured: every op, at which sizes, against what, and which speed it promises.

A case makes its data once and gives its contenders as calls without arguments. Data are random and, at full size,
larger than the caches; what a rival can have prepared beforehand (probabilities in its own dtype, a tree, a compiled
graph) is prepared outside its call. Libraries are imported and graphs compiled within a contender's first call, which
is never timed; if that call raises, the contender is left out and the reason recorded.

``bytes`` is what the op cannot avoid to move: inputs read once and outputs written once (in-place ones both).
Each in-place contender has data of its own.

CASES and CURVES are for CPUs; CUDA_CASES, from the same functions, have the sizes that keep a large GPU busy.
"""

from bench.cases import codes, gumbel, sampling, selection
from bench.cases.case import Case

FAMILIES = (gumbel, codes, selection, sampling)
CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)
CURVES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CURVES)
CUDA_CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CUDA_CASES)
