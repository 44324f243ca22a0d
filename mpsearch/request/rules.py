"""What the user decides about single layers: `--fix` (bits that a layer must or must not have) and `--tie`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from hwmodel import WEIGHT_BITS, InputError, LayerTable, Precision
from hwmodel.precision import is_rate

_FIX = re.compile(r"\s*([^=!\s]+)\s*(!?=)\s*(\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?)*)\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    """The weight bits that `layer` must have, one of them, or, where `forbids`, must not have."""

    layer: str
    bits: tuple[float, ...]
    forbids: bool

    def __str__(self) -> str:
        return f"{self.layer}{'!=' if self.forbids else '='}{','.join(f'{bits:g}' for bits in self.bits)}"


def parse_rule(text: str) -> Rule:
    """Reads `features.0.0=8`, `features.0.0=4,8` or `features.0.0!=2`. Raises InputError for anything else."""
    match = _FIX.fullmatch(text)
    if match is None:
        raise InputError(f"--fix looks like LAYER=8, LAYER=4,8 (one of these) or LAYER!=2 (not this); got {text!r}")
    bits = tuple(sorted({float(part) for part in match[3].split(",")}))
    wrong = [b for b in bits if b not in WEIGHT_BITS and not is_rate(b)]
    if wrong:
        raise InputError(f"--fix {text}: weight bits are {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]}, got {wrong[0]:g}")
    return Rule(match[1], bits, match[2] == "!=")


def parse_tie(text: str) -> tuple[str, ...]:
    """Reads `layer1,layer2,…`. Raises InputError for fewer than two names."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(names) < 2:
        raise InputError(f"--tie takes two or more layers, say features.1.conv.0.0,features.1.conv.1; got {text!r}")
    return names


def allowed_precisions(
    names: Sequence[str], offered: Sequence[Precision], held: Collection[str], edge: Precision, rules: Iterable[Rule]
) -> dict[str, tuple[Precision, ...]]:
    """For every layer in `names` the precisions that it may have: those `offered`, `edge` where it is `held`, by rules.

    Rules are about weights: a layer with a set of weight bits has every activation width that is offered.

    Raises InputError for unknown layers, for a layer with two sets, and where nothing is left.
    """
    allowed = {name: (edge,) if name in held else tuple(offered) for name in names}
    activations = sorted({precision.a for precision in offered})
    given: set[str] = set()
    for rule in sorted(rules, key=lambda rule: rule.forbids):  # sets first, then what is taken away
        _require_layer(rule.layer, names, f"--fix {rule}")
        if not rule.forbids:
            if rule.layer in given:
                raise InputError(f"--fix {rule}: {rule.layer} has another set already; give one, say {rule.layer}=4,8")
            given.add(rule.layer)
            allowed[rule.layer] = tuple(_precision(rule, bits, a, edge) for bits in rule.bits for a in activations)
            continue
        left = tuple(precision for precision in allowed[rule.layer] if precision.stored not in rule.bits)
        if not left:
            had = ",".join(dict.fromkeys(f"{precision.stored:g}" for precision in allowed[rule.layer]))
            hint = "; --edges free searches it like any other" if rule.layer in held else ""
            raise InputError(f"--fix {rule} leaves nothing: {rule.layer} has only {had} to choose from{hint}")
        allowed[rule.layer] = left
    return allowed


def _precision(rule: Rule, bits: float, activation: int, edge: Precision) -> Precision:
    """The precision of so many bits a weight, entropy-coded where `edge` is."""
    if edge.rate:
        return replace(edge, a=activation, rate=bits)
    if bits not in WEIGHT_BITS:
        raise InputError(
            f"--fix {rule}: codes of a fixed width have {min(WEIGHT_BITS)} to {max(WEIGHT_BITS)} bits, got {bits:g}; "
            "as a rate it needs --coding entropy"
        )
    return Precision(int(bits), activation)


def tied(table: LayerTable, ties: Iterable[Sequence[str]]) -> LayerTable:
    """The table with these layers, and those that they were tied to before, in one tie group each.

    Raises InputError for unknown layers.
    """
    group = {layer.name: layer.tie for layer in table}
    for names in ties:
        for name in names:
            _require_layer(name, table.names, f"--tie {','.join(names)}")
        joined = {group[name] for name in names}
        group = {name: group[names[0]] if tie in joined else tie for name, tie in group.items()}
    return replace(table, layers=tuple(replace(layer, tie=group[layer.name]) for layer in table))


def _require_layer(name: str, names: Sequence[str], option: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, 0.4) or list(names[:3])
        raise InputError(f"{option}: there is no layer {name!r}; did you mean {', '.join(near)}? (mpsearch layers)")
