"""Measured costs of this very machine: every distinct layer shape, at every precision that onnxruntime executes.

A layer is measured as a model of its own: quantized input codes, DequantizeLinear, Conv or Gemm, QuantizeLinear for
8-bit activations (which onnxruntime fuses into one integer kernel), and float input, weights behind DequantizeLinear,
for float activations. All layers of a precision are run in turn, so that each finds its weights where the others left
them, and all use the same memory: inputs are written just before a layer runs, as its predecessor in a network does.
The cost is the median over the rounds of what the runtime's profiler reports for the kernels.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.layer import LayerSpec, LayerTable
from hwmodel.lookup import LayerShape, LookupRow, LookupTable, read_lookup, write_lookup
from hwmodel.precision import FLOAT_BITS, Precision

FLOAT = Precision(FLOAT_BITS, FLOAT_BITS)
CANDIDATES = (FLOAT, *(Precision(w, a) for a in (FLOAT_BITS, 8) for w in (8, 4, 2)))
OPSET, IR_VERSION = 25, 13
LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
INTEGER_KERNELS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits"})


@dataclass(frozen=True, slots=True)
class Probe:
    """A loaded one-layer model, its buffers bound, what its input holds, and what its graph was optimised to."""

    session: Any
    binding: Any
    values: NDArray[Any]
    buffers: tuple[NDArray[Any], NDArray[Any]]
    operators: tuple[str, ...]

    def run(self) -> None:
        """One run, its input fresh, seen by the runtime's profiler."""
        np.copyto(self.buffers[0], self.values)
        self.session.run_with_iobinding(self.binding)

    def seconds(self) -> NDArray[np.float64]:
        """Ends the profiling: seconds of the layer's operators, layout changes aside, in each run so far."""
        path = Path(self.session.end_profiling())
        events = json.loads(path.read_text("utf-8"))
        path.unlink()
        runs, pending = [], 0
        for event in events:
            if event["name"] == "model_run":
                runs.append(pending * 1e-6)
                pending = 0
            elif event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                pending += 0 if event["args"]["op_name"] in LAYOUT else event["dur"]
        return np.array(runs)


def profile_layers(
    table: LayerTable,
    precisions: Sequence[Precision] = CANDIDATES,
    *,
    threads: int = 1,
    rounds: int = 30,
    warmup: int = 3,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
    partial: Path | None = None,
) -> LookupTable:
    """Measures each distinct shape of `table`, one image at a time, at those of `precisions` that onnxruntime executes.

    A precision counts as executed when the runtime loads and runs the model and, for integer activations, runs it with
    an integer kernel: a model that is widened to float on every call would be measured, but saves no arithmetic. What
    is left out is reported, a line each, as `report` gets them. `partial` (.json) keeps what is measured, precision by
    precision: an interrupted profile goes on from it, and the file goes when all is measured. Raises InputError where
    onnx or onnxruntime is missing, or nothing can be run.
    """
    onnx, runtime = _require("onnx"), _require("onnxruntime")
    _share_arena(runtime)
    if rounds < 1 or warmup < 0 or threads < 1:
        raise InputError(f"rounds and threads must be at least 1, got {rounds} and {threads}")
    shapes = list(dict.fromkeys(LayerShape.of(layer) for layer in table))
    source = _source(runtime, threads, rounds)
    rows = _measured_before(partial, source, shapes)
    with TemporaryDirectory() as folder:
        for precision in precisions:
            if any(row.precision == precision for row in rows):
                report(f"{precision}: measured before the interruption")
                continue
            try:
                probes = _probes(onnx, runtime, shapes, precision, threads, np.random.default_rng(seed), Path(folder))
            except _Refused as reason:
                report(f"{precision} is left out: {reason}")
                continue
            for _ in range(warmup + rounds):
                for probe in probes:
                    probe.run()
            taken = np.array([probe.seconds()[-rounds:] for probe in probes])
            low, middle, high = np.quantile(taken, (0.25, 0.5, 0.75), axis=1)
            for i, (shape, probe) in enumerate(zip(shapes, probes, strict=True)):
                spread = float(high[i] - low[i]) / 2
                rows.append(LookupRow(shape, precision, float(middle[i]), None, spread, "+".join(probe.operators)))
            if partial is not None:
                write_lookup(LookupTable(source, tuple(rows)), partial)
            names = sorted({name for probe in probes for name in probe.operators})
            report(f"{precision}: {len(shapes)} shapes, {middle.sum() * 1e3:.2f} ms, by {'+'.join(names)}")
    if not rows:
        raise InputError(f"onnxruntime runs none of {', '.join(map(str, precisions))} here")
    if partial is not None:
        partial.unlink(missing_ok=True)
    return LookupTable(source, tuple(rows))


@cache
def _share_arena(runtime: ModuleType) -> None:
    """One arena for all sessions, so that intermediate tensors lie where the caches are warm, as in one network."""
    kind, use = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", kind, 0, use), None)


def _measured_before(partial: Path | None, source: str, shapes: Sequence[LayerShape]) -> list[LookupRow]:
    """The rows of an interrupted profile of the same shapes in the same runtime, else none."""
    if partial is None or not partial.is_file():
        return []
    try:
        table = read_lookup(partial)
    except InputError:  # cut off while it was written
        return []
    complete = {
        precision for precision in table.precisions if all((shape, precision) in table.index for shape in shapes)
    }
    same = table.source == source and {row.shape for row in table.rows} == set(shapes)
    return [row for row in table.rows if same and row.precision in complete]


class _Refused(Exception):
    """The runtime does not execute a precision; the message says why."""


def _require(name: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        raise InputError(f"profiling needs {name}; install it with: pip install 'mpsearch[onnx]'") from None


def _probes(
    onnx: ModuleType,
    runtime: ModuleType,
    shapes: Sequence[LayerShape],
    precision: Precision,
    threads: int,
    rng: np.random.Generator,
    folder: Path,
) -> list[Probe]:
    probes = []
    memory = [np.zeros(4 * max(_elements(shape, i) for shape in shapes), np.uint8) for i in (0, 1)]
    for shape in shapes:
        layer = shape.layer()
        if min(*layer.in_size, *layer.out_size) < 1:
            raise _Refused(f"{shape} is an empty map")
        try:
            probe = _load(onnx, runtime, layer_model(onnx, layer, precision, rng), threads, rng, folder, memory)
        except Exception as error:  # the runtime's own exception types are not public
            raise _Refused(str(error).strip().splitlines()[0][:160]) from None
        if precision.a != FLOAT_BITS and not INTEGER_KERNELS & set(probe.operators):
            raise _Refused(f"the runtime widens it to float ({'+'.join(sorted(set(probe.operators)))})")
        probes.append(probe)
    return probes


def _elements(shape: LayerShape, side: int) -> int:
    layer = shape.layer()
    return (layer.n_activations, layer.n_outputs)[side]


def layer_model(onnx: ModuleType, layer: LayerSpec, precision: Precision, rng: np.random.Generator) -> bytes:
    """The layer as an ONNX model with random weights; the module says how a precision is written."""
    helper, types = onnx.helper, onnx.TensorProto
    conv = layer.kind == "conv"
    wide = (1, layer.in_channels, *layer.in_size) if conv else (layer.in_size[0], layer.in_channels)
    out = (1, layer.out_channels, *layer.out_size) if conv else (layer.out_size[0], layer.out_channels)
    taps = (layer.in_channels // layer.groups, *layer.kernel) if conv else (layer.in_channels,)
    shape = (layer.out_channels, *taps)
    integer = precision.a != FLOAT_BITS
    nodes, constants = [], []

    def constant(name: str, kind: int, values: NDArray[Any]) -> str:
        constants.append(helper.make_tensor(name, kind, values.shape, values.ravel().tolist()))
        return name

    scale = constant("scale", types.FLOAT, np.array(0.02, np.float32))
    zero = constant("zero", types.UINT8, np.array(128, np.uint8))
    x = "x"
    if integer:
        nodes.append(helper.make_node("DequantizeLinear", ["x", scale, zero], ["x_float"]))
        x = "x_float"
    if precision.w == FLOAT_BITS:
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        weight = onnx.numpy_helper.from_array(values, "w")
        constants.append(weight)
    else:
        limit = 1 << (precision.w - 1)
        kind = {8: types.INT8, 4: types.INT4, 2: getattr(types, "INT2", types.INT4)}[precision.w]
        constant("w_codes", kind, rng.integers(-limit, limit, shape))
        constant("w_scale", types.FLOAT, np.full(layer.out_channels, 0.01, np.float32))
        constant("w_zero", kind, np.zeros(layer.out_channels, np.int64))
        nodes.append(helper.make_node("DequantizeLinear", ["w_codes", "w_scale", "w_zero"], ["w"], axis=0))
    if integer:
        constant("b_codes", types.INT32, np.zeros(layer.out_channels, np.int64))
        constant("b_scale", types.FLOAT, np.full(layer.out_channels, 0.0002, np.float32))
        nodes.append(helper.make_node("DequantizeLinear", ["b_codes", "b_scale"], ["b"], axis=0))
    else:
        constant("b", types.FLOAT, np.zeros(layer.out_channels, np.float32))
    last = "y_float" if integer else "y"
    nodes.append(_operator(helper, layer, [x, "w", "b"], last))
    if integer:
        nodes.append(helper.make_node("QuantizeLinear", ["y_float", scale, zero], ["y"]))
    kind = types.UINT8 if integer else types.FLOAT
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", kind, wide)],
        [helper.make_tensor_value_info("y", kind, out)],
        constants,
    )
    opset = helper.make_opsetid("", OPSET if precision.w == 2 else 21)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString())


def _operator(helper: ModuleType, layer: LayerSpec, inputs: list[str], output: str) -> Any:
    if layer.kind == "linear":
        return helper.make_node("Gemm", inputs, [output], transB=1)
    pads = [_padding(layer, side) for side in (0, 1)]
    return helper.make_node(
        "Conv",
        inputs,
        [output],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        dilations=layer.dilation,
        group=layer.groups,
        pads=[pads[0][0], pads[1][0], pads[0][1], pads[1][1]],
    )


def _padding(layer: LayerSpec, side: int) -> tuple[int, int]:
    """Padding before and after that makes the output the size that the table says."""
    reach = (layer.kernel[side] - 1) * layer.dilation[side] + 1
    total = max((layer.out_size[side] - 1) * layer.stride[side] + reach - layer.in_size[side], 0)
    return total - total // 2, total // 2


def _load(
    onnx: ModuleType,
    runtime: ModuleType,
    model: bytes,
    threads: int,
    rng: np.random.Generator,
    folder: Path,
    memory: Sequence[NDArray[np.uint8]],
) -> Probe:
    """Loads a model onto the first bytes of `memory`: one buffer for inputs, one for outputs."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A folder each: the runtime names profiles by the millisecond, and two sessions may start in one.
    options.enable_profiling, options.profile_file_prefix = True, str(Path(mkdtemp(dir=folder)) / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    source, target = session.get_inputs()[0], session.get_outputs()[0]
    if source.type == "tensor(uint8)":
        values: NDArray[Any] = rng.integers(0, 256, source.shape, np.uint8)
    else:
        values = rng.normal(0, 1, source.shape).astype(np.float32)
    binding = session.io_binding()
    into, out = (_view(buffer, at.shape, values.dtype) for buffer, at in zip(memory, (source, target), strict=True))
    np.copyto(into, values)
    binding.bind_input(source.name, "cpu", 0, values.dtype.type, source.shape, into.ctypes.data)
    binding.bind_output(target.name, "cpu", 0, values.dtype.type, target.shape, out.ctypes.data)
    session.run_with_iobinding(binding)
    return Probe(session, binding, values, (into, out), tuple(node.op_type for node in optimized.graph.node))


def _view(buffer: NDArray[np.uint8], shape: Sequence[int], kind: np.dtype[Any]) -> NDArray[Any]:
    count = int(np.prod(shape)) * kind.itemsize
    return buffer[:count].view(kind).reshape(shape)


def _source(runtime: ModuleType, threads: int, rounds: int) -> str:
    return (
        f"onnxruntime {runtime.__version__} on {platform.machine()} ({_processor()}), "
        f"{threads} thread{'s' if threads > 1 else ''}, median of {rounds}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
