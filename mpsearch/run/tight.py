"""The tight end of a front: what plain answers would have left there, beside what the search found."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel import BudgetError
from mpsearch.files.fingerprint import fingerprint
from mpsearch.files.folder import Json
from mpsearch.optimization.baselines import Answer
from mpsearch.optimization.front import ParetoFront
from mpsearch.run.keys import finished_key
from mpsearch.run.loaded import Loaded
from recon.quantizers.quantized import plainly_rounded, quantized

UNIFORM = "uniform "
SHOWN = 3  # budgets
NEARLY = 0.9  # of a loss: no better
SAMPLES = 256  # that the tightest is measured on: seconds


def tight_step(loaded: Loaded, front: ParetoFront, answers: Sequence[Answer]) -> Json:
    """What the same bits everywhere cost and lose at the tightest budgets that they meet, and what the front has there.

    `rows` by ascending cost: `bits`, `cost` in the unit of the front's first cost, `loss` and the `point` of the front
    within it, with its `point_cost` and `point_loss`; losses are predicted, in nats. `measured` are the metrics of the
    float network and of the row `at` by plain rounding, on the first `samples` of the validation samples: the tightest
    row where the front has something better. Written as `tight.json`; empty where no such answer is within the budgets.
    """
    rows = _rows(front, answers)
    if not rows:
        return {}
    at = next((at for at, row in enumerate(rows) if row["point_loss"] < NEARLY * row["loss"]), 0)
    config = next(answer.config for answer in answers if answer.name == UNIFORM + rows[at]["bits"])
    key = fingerprint(finished_key(loaded, config, {}), rows)
    known = loaded.folder.current("tight.json", key)
    if known is not None:
        return known
    with loaded.clock.timed("uniform bits"), loaded.console.progress("uniform bits, rounded plainly", 2) as advance:
        leaves = loaded.network.leaves(loaded.calibration)
        rounded = quantized(loaded.network, plainly_rounded(loaded.network, leaves, config, loaded.settings.symmetric))
        advance(1)
        judge = loaded.judge.first(SAMPLES)
        measured = {"float": judge.truth, "plain": judge.measure(rounded.model)}
        advance(2)
    found = {
        "key": key,
        "cost": front.names[1],
        "rows": rows,
        "at": at,
        "measured": measured,
        "judged_by": [figure.to_json() for figure in judge.figures],
        "samples": len(judge.split),
    }
    loaded.folder.write_json("tight.json", found)
    return found


def _rows(front: ParetoFront, answers: Sequence[Answer]) -> list[Json]:
    cost = front.names[1]
    uniform = [answer for answer in answers if answer.name.startswith(UNIFORM) and answer.feasible]
    rows = []
    for answer in sorted(uniform, key=lambda answer: dict(answer.costs)[cost])[:SHOWN]:
        at = dict(answer.costs)[cost]
        try:
            point = front.best({cost: at})
        except BudgetError:
            continue
        loss, point_cost = front.objectives[point, :2].tolist()
        rows.append(
            {
                "bits": answer.name.removeprefix(UNIFORM),
                "cost": at,
                "loss": answer.loss,
                "point": point,
                "point_cost": point_cost,
                "point_loss": loss,
            }
        )
    return rows
