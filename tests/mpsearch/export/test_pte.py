"""ExecuTorch files: XNNPACK computes what the golden plan does; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runtime_nets import low_bit

from hwmodel import InputError, Precision
from mpsearch.export.filesize import plan_for
from mpsearch.export.plan import golden
from mpsearch.export.torch.module import exported_program
from mpsearch.export.torch.pte import Method, pte_bytes, read_pte

pytestmark = pytest.mark.filterwarnings("ignore")  # executorch's own
pytest.importorskip("executorch", reason="the extra executorch is not installed")


@pytest.mark.parametrize("name", ["residual", "neck"])
def test_xnnpack_computes_what_the_plan_says(name: str, tmp_path: Path) -> None:
    network, layers, leaves = low_bit(name, Precision(8, 8), (8,))
    plan = plan_for("pt2e", network, layers, leaves)
    path = tmp_path / "model.pte"
    path.write_bytes(pte_bytes(exported_program(plan, leaves), {"key": "value"}))
    data, metadata, counts = read_pte(path)
    assert metadata == {"key": "value"}
    assert counts["delegates"] >= 1
    expected = golden.outputs(plan, golden.execute(plan, leaves[0].numpy()))
    for ours, theirs in zip(Method(data, "file").run([leaves[0].numpy()]), expected, strict=True):
        assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.03 * theirs.std()
    if name == "residual":
        assert counts == {"delegates": 1, "operators": 0}
        grid = plan.tensors[plan.outputs[0]].grid
        assert grid is not None
        np.testing.assert_allclose(ours, theirs, atol=1.01 * grid.scale)  # a step, where means are rounded
        assert np.isclose(ours, theirs, atol=1e-6).mean() > 0.9
    for count in (10, 200, len(data) // 2):
        path.write_bytes(data[:count])
        with pytest.raises(InputError, match="export it again"):
            read_pte(path)
