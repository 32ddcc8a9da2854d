"""What can be chosen of a quantisation: the options of ``tokenmill quantize``."""

from __future__ import annotations

from typing import Annotated

import typer

COMPARED = "rtn:4,gptq:4,awq:4,gptq:4:32,awq:4:32,gptq:3:32,gptq:3.5,codebook:3,w8a8"

Method = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="rtn, gptq, awq, codebook, w8a8, llm-int8, fp8 or nf4. [default: gptq]"),
]
Bits = Annotated[int | None, typer.Option(help="Bits of a weight: 2, 3, 4 or 8. [default: 4 where there is a choice]")]
BitsBudget = Annotated[
    float | None,
    typer.Option(
        metavar="BITS",
        help="rtn, gptq, awq: bits a weight in the mean, scales included; each layer gets 3, 4 or 8 (2 below "
        "3.5; at least --bits), by what rounding it does to the model. w8a8: 8, or 16 for the layers that lose "
        "most [default: 9.5; --bits 8: all in 8 bits]",
    ),
]
GroupSize = Annotated[
    int | None, typer.Option(help="Weights that share a scale: 32, 64, 128, …; -1: a row. [default: 128]")
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric", help="Zero is the middle code, or each group has its own. [default: by method]"
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="compressed-tensors, gptq, awq, bitsandbytes or squeezellm. [default: by method]"
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration documents, spread over the data. [default: 128]")]
SeqLen = Annotated[int | None, typer.Option(min=8, help="Most tokens of a calibration document. [default: 512]")]
Damping = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="gptq, codebook, w8a8, llm-int8: share of the mean added to the diagonal. [default: 0.01]",
    ),
]
ActOrder = Annotated[
    bool | None,
    typer.Option(
        "--act-order/--no-act-order", help="gptq, codebook, w8a8, llm-int8: columns by importance. [default: yes]"
    ),
]
Clip = Annotated[
    bool | None, typer.Option("--clip/--no-clip", help="awq: search where to clip each group. [default: yes]")
]
Smooth = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="w8a8, llm-int8: SmoothQuant's strength; 0: none, no data. [default: searched]"
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE", help="Also scales for keys and values as int8 (by head) or fp8 (by layer), from the data."
    ),
]
Compare = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Try several, METHOD[:BITS[:GROUP]] each (3.5 bits: a budget), or 'all' "
        f"({COMPARED}); only reports are written.",
    ),
]
