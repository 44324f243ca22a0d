"""Lookup tables: the row first, then a fit that says so; two formats; HAQ's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layers import conv, linear

from hwmodel.device import lookup_device
from hwmodel.errors import InputError
from hwmodel.latency import device_costs
from hwmodel.layer import LayerTable
from hwmodel.lookup import LayerShape, LookupRow, LookupTable, import_haq, read_haq, read_lookup, write_lookup
from hwmodel.precision import Precision

W8, W4 = Precision(8, 8), Precision(4, 8)
LAYERS = (
    conv("a", 16, 32), conv("b", 32, 32), conv("c", 32, 64, (1, 1)), conv("d", 64, 64, (1, 1), (7, 7)),
    conv("dw", 32, 32, groups=32), linear("fc", 64, 10), conv("again", 16, 32, uses=2),
)  # fmt: skip
TABLE = LayerTable("t", (3, 14, 14), LAYERS)


def seconds(layer_index: int) -> float:
    """A law that the fit can follow."""
    layer = LAYERS[layer_index]
    return 1e-6 + 2e-11 * layer.macs / layer.uses + 3e-9 * layer.n_weights


def measured(*left_out: str) -> LookupTable:
    rows = {
        (LayerShape.of(layer), precision): LookupRow(
            LayerShape.of(layer), precision, seconds(i) * precision.w / 8, 1e-3, 1e-8, "kernel"
        )
        for i, layer in enumerate(LAYERS)
        for precision in (W4, W8)
        if layer.name not in left_out
    }
    return LookupTable("a test", tuple(rows.values()))


def test_a_row_is_taken_as_it_is_and_uses_multiply() -> None:
    costs = device_costs(TABLE, [W4, W8], lookup_device(measured(), "mine"))
    np.testing.assert_allclose(costs.latency_s[:, 1], [seconds(i) * layer.uses for i, layer in enumerate(LAYERS)])
    np.testing.assert_allclose(costs.latency_s[:, 0], costs.latency_s[:, 1] / 2)
    assert (costs.binds == "measured").all()
    assert costs.energy_j is not None
    np.testing.assert_allclose(costs.energy_j[-1], 2e-3)
    assert measured().missing(TABLE, [W4, W8]) == ()


def test_a_missing_row_is_fitted_said_and_listed() -> None:
    for i, name in ((2, "c"), (5, "fc")):
        table = measured(name)
        costs = device_costs(TABLE, [W4, W8], lookup_device(table, "mine"))
        np.testing.assert_allclose(costs.latency_s[i], [seconds(i) / 2, seconds(i)], rtol=1e-6)
        expected = ["interpolated" if layer.name == name else "measured" for layer in TABLE]
        assert costs.binds[:, 0].tolist() == costs.binds[:, 1].tolist() == expected
        assert costs.energy_j is None  # a fit knows no joules
        assert table.missing(TABLE, [W4, W8]) == ((name, W4), (name, W8))


def test_depthwise_layers_are_never_fitted_by_others() -> None:
    with pytest.raises(InputError, match=r"no rows for dw at W4A8, dw at W8A8, nor rows like them; measure them"):
        device_costs(TABLE, [W4, W8], lookup_device(measured("dw"), "mine"))
    with pytest.raises(InputError, match="does not run W2A8"):
        device_costs(TABLE, [Precision(2, 8)], lookup_device(measured(), "mine"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.json"])
def test_tables_come_back_as_they_were_written(name: str, tmp_path: Path) -> None:
    table = measured()
    table = replace(table, rows=(*table.rows[:-1], replace(table.rows[-1], joules=None, spread=None, kernel="")))
    write_lookup(table, tmp_path / name)
    again = read_lookup(tmp_path / name)
    assert again.rows == table.rows
    assert again.source == (table.source if name.endswith("json") else str(tmp_path / name))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight_bits", "wbits", "column weight_bits is missing"),
        ("kernel\n", "kernel,colour\n", "unknown column 'colour'"),
        ("conv,16", "pool,16", "line 2: kind must be conv or linear, got 'pool'"),
        ("conv,16", "conv,many", "line 2: in_channels must be a number, got 'many'"),
        ("conv,16", "conv,1.5", "line 2: in_channels must be a whole number"),
        ("conv,16", "conv,0", "in_channels must be at least 1, got 0"),
        (",4,8,", ",9,8,", "weight bits must be one of 2-8"),
        (",4,8,", ",4,8,-", "seconds of conv .* must be ≥ 0"),
    ],
)
def test_a_mistake_in_a_table_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_lookup(measured(), path)
    text = path.read_text("utf-8").replace("\r\n", "\n")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_lookup(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for text, message in (("{", "no valid JSON"), ("[]", "must be"), ('{"format": "x", "rows": []}', "must be")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_lookup(path)
    write_lookup(measured(), tmp_path / "rows.csv")
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(InputError, match="has two rows; keep one"):
        read_lookup(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"\.csv or \.json"):
        write_lookup(measured(), tmp_path / "rows.txt")


def test_a_table_of_haq_is_imported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    costs = rng.uniform(1, 2, (len(TABLE), 8, 8))
    np.save(tmp_path / "haq.npy", costs)
    table = import_haq(read_haq(tmp_path / "haq.npy"), TABLE, 1e-3, 16, "HAQ")
    assert len(table.rows) == 6 * 49  # two layers share a shape; 2 to 8 bits each way
    found = device_costs(TABLE, [W4, W8], lookup_device(table, "haq")).latency_s
    np.testing.assert_allclose(found[1], costs[1, [3, 7], 7] * 1e-3 / 16)
    np.testing.assert_allclose(found[0], costs[[0, 6]][:, [3, 7], 7].mean(axis=0) * 1e-3 / 16)
    with pytest.raises(InputError, match=r"must have shape \(7, 8, 8\), got \(6, 8, 8\)"):
        import_haq(costs[:6], TABLE, 1e-3, 16, "HAQ")


def test_what_is_no_table_of_haq_is_refused_and_pickles_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return (Path(tmp_path / "ran").touch, ())

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "nan.npy", np.full((2, 8, 8), np.nan))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name in ("evil", "text", "nan", "words", "missing"):
        with pytest.raises(InputError, match=f"{name}.npy"):
            read_haq(tmp_path / f"{name}.npy")
    assert not (tmp_path / "ran").exists()
