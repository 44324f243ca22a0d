"""C99: compiled, and equal to the golden answer in every byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runtime_nets import NETS, plan_of

from hwmodel import InputError, Precision
from mpsearch.export.c.arena import arrange, bytes_of
from mpsearch.export.c.write import write_c
from mpsearch.export.plan import golden

needs_compiler = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler and make")


@needs_compiler
@pytest.mark.parametrize("precision", ["W4A8", "W3A6"])
@pytest.mark.parametrize("name", NETS)
def test_the_self_test_passes_and_new_samples_are_golden(name: str, precision: str, tmp_path: Path) -> None:
    plan = plan_of(name, Precision.parse(precision), real_outputs=False)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, *NETS[name][1])).astype(np.float32)
    for file, text in write_c(plan, [x], {}).items():
        (tmp_path / file).write_text(text)
    flags = "CFLAGS=-O1 -Werror -pedantic -fsanitize=undefined,address -fno-sanitize-recover=all"
    done = subprocess.run(["make", "-s", flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    new = generator.standard_normal((3, *NETS[name][1])).astype(np.float32)
    values = golden.execute(plan, new)
    given = values[plan.inputs[0]].tobytes()
    found = subprocess.run([tmp_path / "selftest", "-"], input=given, capture_output=True, check=True).stdout
    expected = b"".join(values[out][k].tobytes() for k in range(len(new)) for out in plan.outputs)
    assert found == expected


@needs_compiler
def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    plan = plan_of("residual", Precision(4, 8), real_outputs=False)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    files = write_c(plan, [x], {})
    head, _, tail = files["model.h"].partition("l0_b[")
    values = tail.partition("{\n")[2].partition("}")[0]
    changed = ",".join(str(int(value) + 100_000) for value in values.split(","))
    files["model.h"] = head + "l0_b[" + tail.replace(values, changed, 1)
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    assert subprocess.run(["make", "-s"], cwd=tmp_path, capture_output=True).returncode != 0


@pytest.mark.parametrize("name", NETS)
def test_what_is_alive_does_not_overlap(name: str) -> None:
    plan = plan_of(name, Precision(8, 8), real_outputs=False)
    places, most = arrange(plan)
    last = {key: k for k, op in enumerate(plan.ops) for key in op.inputs} | dict.fromkeys(plan.outputs, len(plan.ops))
    first = dict.fromkeys(plan.inputs, -1) | {op.output: k for k, op in enumerate(plan.ops)}
    ends = {key: (places[key], places[key] + bytes_of(plan, key)) for key in places}
    assert max(end for _, end in ends.values()) == most
    for one in places:
        for other in places:
            alive = first[one] <= last.get(other, first[other]) and first[other] <= last.get(one, first[one])
            if one < other and alive:
                assert ends[one][1] <= ends[other][0] or ends[other][1] <= ends[one][0], (one, other)


def test_float_activations_are_refused() -> None:
    plan = plan_of("residual", Precision(4), real_outputs=False)
    with pytest.raises(InputError, match=r"--format c needs integers, but stem.0 \(conv\) has no integer kernel"):
        write_c(plan, [np.zeros((1, 3, 16, 16), np.float32)], {})
