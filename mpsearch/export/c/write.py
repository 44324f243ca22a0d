"""A plan as C99: `model.h` with the weights and the network, the kernels, and a self-test that `make` runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.export.c.arena import arrange, bytes_of
from mpsearch.export.c.calls import Calls, grid_of
from mpsearch.export.plan import golden
from mpsearch.export.plan.records import Plan

KERNELS = "mps_kernels.h"
_MAKEFILE = """# Builds the network and its self-test, and runs it: outputs must equal the golden ones in every byte.
CFLAGS ?= -O2
check: selftest
\t./selftest

selftest: selftest.c model.h mps_kernels.h golden.h
\t$(CC) $(CFLAGS) -std=c99 -Wall -Wextra -o $@ selftest.c

clean:
\trm -f selftest

.PHONY: check clean
"""
_SELFTEST = """/* Compares the network with golden vectors; with "-", maps int8 samples on stdin to stdout. */
#include <stdio.h>
#include <string.h>
#include "model.h"
#include "golden.h"

static int8_t arena[MPS_ARENA_BYTES];

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "-")) {
    while (fread(arena + mps_input_at[0], 1, mps_input_bytes[0], stdin) == mps_input_bytes[0]) {
      for (int k = 1; k < MPS_INPUTS; k++)
        if (fread(arena + mps_input_at[k], 1, mps_input_bytes[k], stdin) != mps_input_bytes[k]) return 2;
      mps_run(arena);
      for (int k = 0; k < MPS_OUTPUTS; k++) fwrite(arena + mps_output_at[k], 1, mps_output_bytes[k], stdout);
    }
    return 0;
  }
  const int8_t *given = mps_golden_inputs, *expected = mps_golden_outputs;
  long wrong = 0, count = 0;
  for (int sample = 0; sample < MPS_GOLDEN_SAMPLES; sample++) {
    for (int k = 0; k < MPS_INPUTS; given += mps_input_bytes[k], k++)
      memcpy(arena + mps_input_at[k], given, mps_input_bytes[k]);
    mps_run(arena);
    for (int k = 0; k < MPS_OUTPUTS; expected += mps_output_bytes[k], k++)
      for (size_t i = 0; i < mps_output_bytes[k]; i++, count++) wrong += arena[mps_output_at[k] + i] != expected[i];
  }
  printf("%ld of %ld bytes equal the golden ones; arena %d bytes, constants %d bytes\\n", count - wrong, count,
         MPS_ARENA_BYTES, MPS_CONSTANT_BYTES);
  return wrong != 0;
}
"""


def write_c(plan: Plan, samples: Sequence[NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, str]:
    """The files of a plan by name, with golden vectors for samples, whose tensors are (N, …).

    Raises InputError where something of the plan has no integer kernel.
    """
    places, tensors_bytes = arrange(plan)
    calls = Calls(plan, places)
    for index, op in enumerate(plan.ops):
        calls.add(op, index)
    values = golden.execute(plan, *samples)
    count = len(samples[0])
    return {
        "model.h": _model(plan, calls, tensors_bytes, metadata),
        "golden.h": f"#define MPS_GOLDEN_SAMPLES {count}\n"
        + _vectors("mps_golden_inputs", [values[name] for name in plan.inputs], count)
        + _vectors("mps_golden_outputs", [values[name] for name in plan.outputs], count),
        **fixed_files(),
        "model.json": json.dumps(dict(metadata), indent=1) + "\n",
    }


def constant_bytes(plan: Plan) -> int:
    """Bytes of a plan's constants, most of what the code takes in flash. Raises InputError as `write_c` does."""
    calls = Calls(plan, arrange(plan)[0])
    for index, op in enumerate(plan.ops):
        calls.add(op, index)
    return calls.flash


def fixed_files() -> dict[str, str]:
    """The files that are the same for every network."""
    kernels = resources.files("mpsearch.export.c").joinpath(KERNELS).read_text("utf-8")
    return {KERNELS: kernels, "selftest.c": _SELFTEST, "Makefile": _MAKEFILE}


def _model(plan: Plan, calls: Calls, tensors_bytes: int, metadata: Mapping[str, str]) -> str:
    arena = tensors_bytes + calls.row
    body = "\n".join(f"  {statement}" for statement in calls.statements)
    sides = [_side(plan, calls.places, *side) for side in (("input", plan.inputs), ("output", plan.outputs))]
    return (
        f"/* {metadata.get('mpsearch.model', 'a network')}, written by mpsearch: weights at their own width.\n"
        " * Put int8 inputs (channels, height, width) at arena + mps_input_at[k], call mps_run(arena); outputs are\n"
        " * at arena + mps_output_at[k]. Nothing is allocated; the arena is the only memory that is written. */\n"
        "#ifndef MPS_MODEL_H\n#define MPS_MODEL_H\n"
        f'#define MPS_WIDEST {calls.widest}\n#include "{KERNELS}"\n'
        f"#define MPS_ARENA_BYTES {arena}\n#define MPS_CONSTANT_BYTES {calls.flash}\n"
        + "".join(sides)
        + "".join(calls.constants)
        + f"static inline void mps_run(int8_t *arena) {{\n  int8_t *row = arena + {tensors_bytes};\n"
        + ("" if calls.row else "  (void)row;\n")
        + f"{body}\n}}\n#endif\n"
    )


def _side(plan: Plan, places: Mapping[str, int], word: str, names: Sequence[str]) -> str:
    grids = [grid_of(plan.tensors[name]) for name in names]
    lines = [f" * {word} {k}: value = {grid.scale!r} * (q - ({grid.zero}))\n" for k, grid in enumerate(grids)]
    at = ", ".join(str(places[name]) for name in names)
    sizes = ", ".join(str(bytes_of(plan, name)) for name in names)
    return (
        f"/*\n{''.join(lines)} */\n#define MPS_{word.upper()}S {len(names)}\n"
        f"static const size_t mps_{word}_at[{len(names)}] = {{{at}}}, mps_{word}_bytes[{len(names)}] = {{{sizes}}};\n"
    )


def _vectors(name: str, values: Sequence[NDArray[Any]], count: int) -> str:
    flat = np.concatenate([np.concatenate([value[k].ravel() for value in values]) for k in range(count)])
    lines = [",".join(map(str, flat[start : start + 32].tolist())) for start in range(0, len(flat), 32)]
    return f"static const signed char {name}[{len(flat)}] = {{\n" + ",\n".join(lines) + "};\n"
