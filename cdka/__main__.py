"""``cdka adapter``: inspect, convert and merge saved adapters without the service.

python -m cdka adapter inspect|export|merge ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from .counts import ModuleShape, rank_bound
from .errors import CdkaError
from .exchange import PREFIX, plain_key, read_adapter, to_lokr, to_lora
from .merging import merge_adapter
from .shapes import listed

adapter = typer.Typer(no_args_is_help=True, help="Inspect, convert and merge saved CDKA adapters.")
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(adapter, name="adapter")

Folder = Annotated[Path, typer.Argument(help="Folder of a saved CDKA adapter.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


@app.callback()
def commands() -> None:
    """Kronecker adapters."""


@adapter.command()
def inspect(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show an adapter's structure, layer by layer: shapes, parameters, rank bound and size of dW."""
    saved = read_adapter(folder)
    rows = []
    for name, (A, B) in saved.layers.items():
        (r, r1, n), (_, m, r2) = A.shape, B.shape
        shape = ModuleShape(name, r2 * n, m * r1)
        # |sum_i B_i (x) A_i|_F^2 = sum_ij <A_i, A_j> <B_i, B_j>
        gram = (A.flatten(1).double() @ A.flatten(1).double().T) * (B.flatten(1).double() @ B.flatten(1).double().T)
        rows.append(
            {
                "layer": name,
                "d_in": shape.d_in,
                "d_out": shape.d_out,
                "r1": r1,
                "r2": r2,
                "r": r,
                "parameters": A.numel() + B.numel(),
                "rank_bound": rank_bound(shape, r1, r2, r),
                "norm": float(gram.sum().clamp_min(0).sqrt()),
            }
        )
    beside = {plain_key(key).removeprefix(PREFIX): value.numel() for key, value in saved.others.items()}
    if as_json:
        typer.echo(json.dumps({"parameters": saved.parameters, "beside": beside, "layers": rows}, indent=2))
        return
    columns = list(rows[0])
    texts = [[f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *texts]) for i in range(len(columns))]
    for line in [columns, *texts]:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    more = f"; {sum(beside.values())} more in heads and biases: {listed(sorted(beside))}" if beside else ""
    typer.echo(f"{len(rows)} layers, {saved.parameters} parameters{more}")


@adapter.command()
def export(
    folder: Folder,
    out: Out,
    to: Annotated[str, typer.Option("--to", help="lora (exact) or lokr (exact for r = 1).")] = "lora",
) -> None:
    """Export an adapter as LoRA or LoKr, for servers that support those."""
    if to == "lora":
        rank = to_lora(folder, out)
        typer.echo(f"wrote {out}: LoRA of rank {rank} (exact); servers need max_lora_rank of at least {rank}")
    elif to == "lokr":
        errors = to_lokr(folder, out)
        worst = max(errors, key=lambda name: errors[name])
        typer.echo(f"wrote {out}: LoKr, relative error at most {errors[worst]:.3g} (at {worst})")
    else:
        raise CdkaError(f"cannot export to {to!r}; available: lora, lokr")


@adapter.command()
def merge(
    folder: Folder,
    out: Out,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Base model: a folder, a GGUF file, or a name on the hub. Default: the adapter's."),
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Kind of task, if cdka_task.json is missing.")] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Take a base model with other weights, if its layers fit.")
    ] = False,
) -> None:
    """Add an adapter to its base model's weights and write the whole model, its class names and its tokenizer."""
    merge_adapter(folder, out, base, kind=kind, any_base=any_base)
    typer.echo(f"wrote {out}: {base or 'its base model'} with {folder} merged")


def main(arguments: list[str] | None = None) -> None:
    """Run the command. A :class:`CdkaError` is printed to stderr and exits with 2."""
    # What they would say of heads and missing weights is checked, and told in our words.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app(args=arguments, prog_name="cdka")
    except CdkaError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
