"""Capturing a network as one ATen graph: torch.export, then small passes from graph to graph.

torch.export (non-strict, the number of samples left open) runs the network's own code once; what comes out has no
in-place operation, no module and no Python in it. Then every convolution, linear map and embedding whose weight is a
parameter, or is computed from parameters alone, becomes a call of a `Layer` module under the parameter's name.
"""

from __future__ import annotations

import copy
import operator
import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec

from hwmodel.errors import InputError
from recon.graph.layers import Convolution, Embedding, Layer, Linear, TransposedConvolution
from recon.graph.samples import Call, Samples, named_parts, path_name

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
_IDENTITIES = (aten.alias, aten.detach, aten.lift_fresh_copy, aten.dropout, aten.feature_dropout, aten.detach_)
_VIEWS = (aten.view, aten._unsafe_view, aten.reshape)
_CHECKS = ("_assert", "sym_constrain_range", "_guards_fn")
_COMPUTED = re.compile(r"(\.parametrizations)?\.weight(\.original\d*|_g|_v|_orig|_mask|_u)?$")
SAMPLES = "samples"  # node.meta: which axis of the value counts the samples, None where none does
STACK = "modules"  # node.meta: paths of the modules that were running, outermost first


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured network: `module` maps the tensors of a call to the tensors of the result, both in pytree order.

    `inputs` and `outputs` are the structures around them; `names` are the paths of the output tensors. `kinds` are the
    classes of the model's modules that hold other modules, by path; `held` the real tensors of the model, with the
    class of the module that holds them, and `used` those of them that its results depend on.
    """

    module: fx.GraphModule
    inputs: TreeSpec
    outputs: TreeSpec
    names: tuple[str, ...]
    kinds: dict[str, type[nn.Module]]
    held: dict[str, str]
    used: frozenset[str]


def export_graph(model: nn.Module, example: Samples, name: str) -> Captured:
    """The graph of `model` on samples like `example`, of which it needs two or more; the model stays as it is.

    Parameters are copied, in float32. Raises InputError where the model cannot be exported: it names the operation, the
    line of the user's code and what to wrap.
    """
    model = plain_copy(model)
    _remember_tensors(model)
    args, kwargs = example.call
    program = _export(model, (args, kwargs), name)
    signature = program.graph_signature
    module = _with_parameters(program, model)
    mutated = [spec.kind != OutputKind.USER_OUTPUT for spec in signature.output_specs]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(node for node, extra in zip(output.args[0], mutated, strict=True) if not extra),)
    module.graph.eliminate_dead_code()
    used = frozenset(str(node.target) for node in module.graph.nodes if node.op == "get_attr")
    _note_samples(module.graph)
    for tidy in (_drop_checks, _drop_identities, _views_of_any_layout, _layers_as_modules):
        tidy(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    spec = program.call_spec.out_spec
    if any(not isinstance(node, fx.Node) for node in output.args[0]):
        raise InputError(f"{name} returns something else than tensors (a number or None); wrap it to return tensors")
    names = tuple(_leaf_names(spec))
    kinds = {path: type(part) for path, part in model.named_modules() if path and any(True for _ in part.children())}
    held = {
        f"{path}.{key}".lstrip("."): type(part).__name__
        for path, part in model.named_modules()
        for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        if tensor.is_floating_point()
    }
    return Captured(module, program.call_spec.in_spec, spec, names, kinds, held, used)


def plain_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode without gradients, taken out of DataParallel and torch.compile.

    Raises InputError for lazy, scripted or meta models, and where the model cannot be copied.
    """
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"{kind} is a scripted model, which cannot be exported: give the nn.Module it was made from")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for key, tensor in tensors:
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            raise InputError(f"{key} is not initialised: run the lazy model once on a batch before it is given")
        if tensor.is_meta:
            raise InputError(f"{key} is on the meta device, without values: load the weights first")
        if tensor.is_quantized:
            raise InputError(f"{key} is quantized already: give the float model")
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # a model may hold anything: locks, files, tensors of a graph
        raise InputError(f"{kind} cannot be copied ({_line(error)}); give a model without open handles") from error
    try:
        model = model.eval()
    except NotImplementedError:
        pass  # an exported module is in the mode that it was exported in
    return model.float().requires_grad_(False)


def _remember_tensors(model: nn.Module) -> None:
    """Makes weights that parametrizations compute plain ones: the same values, without their code."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]  # remove_parametrizations would change the class itself
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _export(model: nn.Module, call: Call, name: str) -> torch.export.ExportedProgram:
    args, kwargs = call
    shapes = torch.utils._pytree.tree_map(lambda leaf: {0: torch.export.Dim.DYNAMIC}, (args, kwargs))
    dynamic = _by_parameter(model, shapes)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
            return program.run_decompositions({})
    except Exception as error:  # the user's code may raise anything
        raise InputError(_why_not(model, call, name, error)) from error


def _by_parameter(model: nn.Module, shapes: Any) -> Any:
    """Dynamic shapes as torch.export wants them: positional ones as a tuple, with keyword arguments by name."""
    args, kwargs = shapes
    if not kwargs:
        return args
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _why_not(model: nn.Module, call: Call, name: str, error: Exception) -> str:
    """One line: what stands in the way of the export, where it is in the user's code, and what to wrap."""
    args, kwargs = call
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as plain:
        sizes = ", ".join(f"{key or 'input'} {list(leaf.shape)}" for key, leaf in named_parts(args or kwargs).items())
        return f"{name} does not run on {sizes}: {_line(plain)}{_user_line(plain)}"
    part = _exportable_part(model, call)
    hint = (
        f"its submodule {part!r} can be exported: give that one, or wrap the model so that it returns what {part!r} does"
        if part
        else "wrap the part of the model before it, or write it with torch operations on whole batches"
    )
    return f"{name} cannot be exported: {_line(error)}{_user_line(error)}; {hint}"


def _line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith(("from user code", "Traceback"))), "")
    return f"{type(error).__name__}: {first}"[:300] if first else type(error).__name__


def _user_line(error: BaseException) -> str:
    """The innermost line outside of torch that an error passed through."""
    inside = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((inside, here, "<"))]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _exportable_part(model: nn.Module, call: Call) -> str | None:
    """The largest submodule, with layers, that can be exported for what it receives."""
    seen: dict[str, Call] = {}
    args, kwargs = call

    def keep(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: seen.setdefault(path, (args, kwargs)) and None

    modules = [(path, module) for path, module in model.named_children()]
    hooks = [module.register_forward_pre_hook(keep(path), with_kwargs=True) for path, module in modules]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    modules.sort(key=lambda pair: -sum(parameter.numel() for parameter in pair[1].parameters()))
    for path, module in modules[:2]:
        if path not in seen or not any(True for _ in module.parameters()):
            continue
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.export.export(module, *seen[path], strict=False)
        except Exception:
            continue
        return path
    return None


def _with_parameters(program: torch.export.ExportedProgram, model: nn.Module) -> fx.GraphModule:
    """The program's graph with parameters, buffers and constants as attributes instead of inputs."""
    root = nn.Module()
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "placeholder":
            continue
        spec = kinds[node.name]
        if spec.kind == InputKind.USER_INPUT:
            if not node.users and not isinstance(node.meta.get("val"), Tensor):
                graph.erase_node(node)  # a constant argument
            continue
        target = str(spec.target)
        state = program.state_dict if target in program.state_dict else program.constants
        _put_tensor(root, target, state[target], spec.kind)
        if node.users:
            with graph.inserting_before(node):
                attribute = graph.create_node("get_attr", target)
            attribute.meta = {"val": node.meta.get("val")}
            node.replace_all_uses_with(attribute)
        graph.erase_node(node)
    for node in graph.nodes:
        paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        node.meta[STACK] = tuple(re.sub(r"@\d+$", "", path) for path in paths if path)
    return fx.GraphModule(root, graph, class_name="Captured")


def _put_tensor(root: nn.Module, path: str, tensor: Tensor, kind: InputKind) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if kind == InputKind.PARAMETER:
        root.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
    else:
        root.register_buffer(name, tensor.detach())


def _leaf_names(spec: TreeSpec) -> list[str]:
    leaves = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = torch.utils._pytree.tree_flatten_with_path(leaves)
    return [path_name(path) for path, _ in paths]


def _note_samples(graph: fx.Graph) -> None:
    """Notes of every value its shape, sizes that grow with the number of samples as minus their size for one sample,
    and which axis counts the samples; drops what torch.export remembers of it."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    names = {str(node.meta["val"].shape[0]) for node in inputs}
    for node in graph.nodes:
        value = node.meta.get("val")
        axes: list[int] = []
        if isinstance(value, Tensor):
            axes = [axis for axis, size in enumerate(value.shape) if str(size) in names]
            node.meta["shape"] = tuple(map(_per_sample, value.shape))
            node.meta["floating"] = value.is_floating_point()
        node.meta["counts"] = isinstance(value, torch.SymInt)
        node.meta[SAMPLES] = axes[0] if len(axes) == 1 else None
        kept = ("shape", "floating", "counts", SAMPLES, STACK)
        node.meta = {key: node.meta[key] for key in kept if key in node.meta}


def _per_sample(size: int | torch.SymInt) -> int:
    """A size as it is, or minus what it is for one sample where it grows with the number of samples."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return -int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _drop_checks(module: fx.GraphModule) -> None:
    """Assertions about shapes and values are gone."""
    for node in reversed(list(module.graph.nodes)):
        if node.op in ("call_function", "call_module") and any(check in str(node.target) for check in _CHECKS):
            module.graph.erase_node(node)


def _drop_identities(module: fx.GraphModule) -> None:
    """What hands on its input in eval mode is gone."""
    for node in list(module.graph.nodes):
        training = len(node.args) > 2 and node.args[2] is True
        if packet_of(node) in _IDENTITIES and not training:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _views_of_any_layout(module: fx.GraphModule) -> None:
    """Views become reshapes, which channels-last maps can have too, and infer the number of samples where they can."""
    for node in module.graph.nodes:
        if packet_of(node) not in _VIEWS:
            continue
        node.target = aten.reshape.default
        source, shape = node.args
        open_sizes = [at for at, size in enumerate(shape) if isinstance(size, fx.Node) or size == -1]
        if len(open_sizes) == 1:
            node.args = (source, [-1 if at in open_sizes else size for at, size in enumerate(shape)])
    module.graph.eliminate_dead_code()


def _layers_as_modules(module: fx.GraphModule) -> None:
    """Every operation that applies a weight made of parameters calls a `Layer` under the weight's name."""
    constants = constant_nodes(module.graph)
    taken: set[str] = set()
    made: dict[tuple[Any, ...], str] = {}
    for node in list(module.graph.nodes):
        weight = _weight_of(node)
        if weight is None or weight not in constants:
            continue
        bias = node.args[2] if len(node.args) > 2 and packet_of(node) is not aten.embedding else None
        if isinstance(bias, fx.Node) and bias not in constants:
            continue
        settings = tuple(arg for arg in node.args[2:] if not isinstance(arg, fx.Node))
        key = (weight, bias, packet_of(node), str(settings))
        if key not in made:
            layer = _layer(module, node, weight, bias)
            layer.source = _source(weight)
            made[key] = _free_name(_COMPUTED.sub("", layer.source), node, taken)
            _add(module, made[key], layer)
        source = node.args[1] if packet_of(node) is aten.embedding else node.args[0]
        node.op, node.target, node.args, node.kwargs = "call_module", made[key], (source,), {}
    module.graph.eliminate_dead_code()


def _free_name(name: str, node: fx.Node, taken: set[str]) -> str:
    """The name of a layer: `name` or, where another layer has it, that of the module that calls it, or a number."""
    inner = next(reversed(node.meta[STACK]), name)
    names = chain((name, inner), (f"{name}.{k}" for k in count(1)))
    name = next(found for found in names if found not in taken)
    taken.add(name)
    return name


def _add(module: fx.GraphModule, name: str, layer: Layer) -> None:
    """Puts a layer where a module of the model, with children or parameters perhaps, has been."""
    parent, _, leaf = name.rpartition(".")
    holder: nn.Module = module
    for part in parent.split(".") if parent else ():
        if part not in holder._modules:
            if part in holder._parameters or part in holder._buffers:
                del (holder._parameters if part in holder._parameters else holder._buffers)[part]
            holder.add_module(part, nn.Module())
        holder = holder._modules[part]  # type: ignore[assignment]
    old = holder._modules.pop(leaf, None)
    holder._parameters.pop(leaf, None)
    for key, child in () if old is None else old._modules.items():
        layer.add_module(key, child)
    for key, value in () if old is None else old.named_buffers(recurse=False):
        if key not in ("weight", "bias"):
            layer.register_buffer(key, value)
    for key, parameter in () if old is None else old.named_parameters(recurse=False):
        if key not in ("weight", "bias"):
            layer.register_parameter(key, parameter)
    holder.add_module(leaf, layer)


def _weight_of(node: fx.Node) -> fx.Node | None:
    """The weight of a convolution, linear map or embedding; None of anything else."""
    packet = packet_of(node)
    if packet in (*_CONVOLUTIONS, *_TRANSPOSED, aten.linear):
        weight = node.args[1]
    elif packet is aten.embedding:
        weight = node.args[0]
    else:
        return None
    return weight if isinstance(weight, fx.Node) else None


def _layer(module: fx.GraphModule, node: fx.Node, weight: fx.Node, bias: Any) -> Layer:
    packet = packet_of(node)
    w = value_of(module, weight).float()
    b = value_of(module, bias).float() if isinstance(bias, fx.Node) else None
    if packet is aten.embedding:
        return Embedding(w)
    if packet is aten.linear:
        return Linear(w, _bias(b, len(w)))
    args = dict(zip(_argument_names(node), node.args, strict=False)) | dict(node.kwargs)
    rank = w.dim() - 2

    def each(key: str, default: int) -> tuple[int, ...]:
        values = args.get(key, default)
        values = [values] if isinstance(values, int) else list(values)
        return tuple(values * rank if len(values) == 1 else values)

    stride, dilation, groups = each("stride", 1), each("dilation", 1), int(args.get("groups", 1))
    if packet in _TRANSPOSED:
        return TransposedConvolution(
            w,
            _bias(b, w.shape[1] * groups),
            stride,
            each("padding", 0),
            each("output_padding", 0),
            dilation,
            groups,
        )
    padding = args.get("padding", 0)
    padding = padding if isinstance(padding, str) else each("padding", 0)
    return Convolution(w, _bias(b, len(w)), stride, padding, dilation, groups)


def _bias(bias: Tensor | None, channels: int) -> Tensor:
    """The bias, zero where there is none, so that what quantization does to a layer's mean can be corrected."""
    return torch.zeros(channels) if bias is None else bias


def _argument_names(node: fx.Node) -> list[str]:
    return [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]


def _source(weight: fx.Node) -> str:
    """The path of the parameter that a weight is, or is computed from."""
    todo, found = [weight], []
    while todo:
        node = todo.pop()
        if node.op == "get_attr":
            found.append(str(node.target))
        todo += node.all_input_nodes
    return max(found, key=lambda path: ("weight" in path, path))


def value_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The value of a node that depends on parameters alone."""
    known: dict[fx.Node, Any] = {}

    def value(node: fx.Node) -> Any:
        if node not in known:
            if node.op == "get_attr":
                known[node] = operator.attrgetter(str(node.target))(module)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    with torch.no_grad():
        result: Tensor = value(node)
        return result.detach().clone()


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on parameters, buffers and constants alone, and call no layer."""
    constants: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(node.all_input_nodes)):
            constants.add(node)
    return constants


def packet_of(node: fx.Node) -> Any:
    """The operation that a node calls, whatever its overload."""
    return getattr(node.target, "overloadpacket", node.target) if node.op == "call_function" else None
