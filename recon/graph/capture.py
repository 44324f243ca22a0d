"""Capturing a network as one ATen graph: torch.export, then small passes from graph to graph.

torch.export (non-strict, the number of samples left open) runs the network's own code once; what comes out has no
in-place operation, no module and no Python in it. Then every convolution, linear map and embedding whose weight is a
parameter, or is computed from parameters alone, becomes a call of a `Layer` module under the parameter's name.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec

from hwmodel.errors import InputError
from recon.compute.arithmetic import single_precision
from recon.graph.gradients import without_backward
from recon.graph.layer_calls import layers_as_modules
from recon.graph.nodes import STACK, note_samples
from recon.graph.passes import drop_checks, drop_identities, products_as_linear, views_of_any_layout
from recon.graph.refusal import first_line, quiet_export, why_not
from recon.graph.samples import Call, Samples, path_name

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao.quantization")


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
    _out_of_place(model)
    args, kwargs = example.call
    program = _export(model, (args, kwargs), name)
    signature = program.graph_signature
    if any(node.op == "get_attr" for node in program.graph.nodes):  # of graphs inside the graph
        raise InputError(
            f"{name} decides by values what it computes (torch.cond or a loop): compute both ways and choose with "
            "torch.where"
        )
    module = _with_parameters(program)
    mutated = [spec.kind != OutputKind.USER_OUTPUT for spec in signature.output_specs]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(node for node, extra in zip(output.args[0], mutated, strict=True) if not extra),)
    module.graph.eliminate_dead_code()
    shared = _shared_parameters(model)
    read = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    used = frozenset(path for target in read for path in shared.get(target, (target,)))
    note_samples(module.graph)
    for tidy in (drop_checks, drop_identities, views_of_any_layout, products_as_linear):
        tidy(module)
    without_backward(module, example.leaves)
    layers_as_modules(module, shared)
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
        if tensor.is_floating_point() and key not in part._non_persistent_buffers_set
    }
    return Captured(module, program.call_spec.in_spec, spec, names, kinds, held, used)


def _shared_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The paths of every parameter that has several, by each of them."""
    paths: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    return {path: tuple(found) for found in paths.values() if len(found) > 1 for path in found}


def plain_copy(model: nn.Module) -> nn.Module:
    """A float32 copy in eval mode without gradients, taken out of DataParallel and torch.compile.

    Raises InputError for lazy, scripted or meta models, and where the model cannot be copied.
    """
    model = _unwrapped(model)
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"{kind} is a scripted model, which cannot be exported: give the nn.Module it was made from")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for key, tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{key} is not initialised: run the lazy model once on a batch before it is given")
        if tensor.is_meta:
            raise InputError(f"{key} is on the meta device, without values: load the weights first")
        if tensor.is_quantized:
            raise InputError(f"{key} is quantized already: give the float model")
    for key, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTIZED):
            raise InputError(f"{key or kind} is quantized already: give the float model")
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{key} is a scripted model, which cannot be exported: give the nn.Module it was made from"
            )
    try:
        model = copy.deepcopy(model, _computed_tensors(model))
    except Exception as error:  # a model may hold anything: locks, files, tensors of a graph
        raise InputError(f"{kind} cannot be copied ({first_line(error)}); give a model without open handles") from error
    with contextlib.suppress(NotImplementedError):  # an exported module is in the mode that it was exported in
        model = model.eval()
    for module in list(model.modules()):
        module._compiled_call_impl = None  # of `module.compile()`
        for key, child in module.named_children():
            setattr(module, key, _unwrapped(child))
    if isinstance(model, fx.GraphModule):
        _without_guards(model)
    return model.float().requires_grad_(False)


def _unwrapped(model: nn.Module) -> nn.Module:
    """What DataParallel or torch.compile have wrapped."""
    while isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
        inner: Any = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
        model = inner
    return model


def _without_guards(model: fx.GraphModule) -> None:
    """Takes out of an exported module what insists on the number of samples that it was exported with.

    Where its operations need that number as well, exporting it again for any number says so.
    """
    for key, hook in list(model._forward_pre_hooks.items()):
        if getattr(hook, "__name__", "") == "_check_input_constraints_pre_hook":
            del model._forward_pre_hooks[key]
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            model.graph.erase_node(node)
    model.recompile()


def _computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies of tensors that hooks have computed (old weight_norm, pruning), which deepcopy refuses, by identity."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _remember_tensors(model: nn.Module) -> None:
    """Makes weights that parametrizations compute plain ones: the same values, without their code."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            computed: Any = module.parametrizations
            values = {name: getattr(module, name).detach().clone() for name in computed}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]  # remove_parametrizations would change the class itself
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _out_of_place(model: nn.Module) -> None:
    """Activations write to new tensors: the graph is the same, and torch.export takes half the time."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn.") and getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def _export(model: nn.Module, call: Call, name: str) -> torch.export.ExportedProgram:
    args, kwargs = call
    shapes = torch.utils._pytree.tree_map(lambda leaf: {0: torch.export.Dim.DYNAMIC}, (args, kwargs))
    dynamic = _by_parameter(model, shapes)
    try:
        with quiet_export(), single_precision():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
            result: torch.export.ExportedProgram = program.run_decompositions({})
            return result
    except Exception as error:  # the user's code may raise anything
        raise InputError(why_not(model, call, name, error)) from error


def _by_parameter(model: nn.Module, shapes: Any) -> Any:
    """Dynamic shapes as torch.export wants them: positional ones as a tuple, with keyword arguments by name."""
    args, kwargs = shapes
    if not kwargs:
        return args
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _with_parameters(program: torch.export.ExportedProgram) -> fx.GraphModule:
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
        _put_tensor(root, target, state[target], spec)
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


def _put_tensor(root: nn.Module, path: str, tensor: Tensor, spec: InputSpec) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    if spec.kind == InputKind.PARAMETER:
        root.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
    else:
        root.register_buffer(name, tensor.detach(), persistent=bool(spec.persistent))


def _leaf_names(spec: TreeSpec) -> list[str]:
    leaves = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = torch.utils._pytree.tree_flatten_with_path(leaves)
    return [path_name(path) for path, _ in paths]
