"""Tasks by name, and the user's own."""

from __future__ import annotations

from hwmodel.errors import InputError
from mpsearch.sources.factory import canonical, guarded, import_source, is_factory
from mpsearch.tasks.boxes import Suppression
from mpsearch.tasks.classification import TASK as CLASSIFICATION
from mpsearch.tasks.detection import NAME as DETECTION
from mpsearch.tasks.detection import detection
from mpsearch.tasks.embedding import TASK as EMBEDDING
from mpsearch.tasks.regression import TASK as REGRESSION
from mpsearch.tasks.segmentation import TASK as SEGMENTATION
from mpsearch.tasks.task import Task

TASKS = {task.name: task for task in (CLASSIFICATION, REGRESSION, SEGMENTATION, EMBEDDING)}


def load_task(reference: str) -> Task:
    """A built-in task by its name, or `FILE.py:task`: a Task there, or a function that returns one.

    Raises InputError for an unknown name, or where the user's code is missing, raises, or is no task.
    """
    if reference in TASKS:
        return TASKS[reference]
    if reference == DETECTION:
        raise InputError("a detector's task depends on how its outputs are decoded: mpsearch.tasks.detection.detection")
    if not is_factory(reference):
        raise InputError(
            f"no task {reference!r}: expected {', '.join((*TASKS, DETECTION))}, or FILE.py:task for one of your own"
        )
    named = _named(reference)
    found: object = guarded(named, f"{reference}: the function raised") if callable(named) else named
    if not isinstance(found, Task):
        seen = "nothing of that name" if found is None else f"a {type(found).__name__}"
        raise InputError(f"{reference} must be a Task, or a function that returns one; got {seen}")
    return found


def load_detection_task(decode: str | None, suppression: Suppression) -> Task:
    """The detection task of outputs that `FILE.py:decode` or `package.module:decode` turns into boxes and scores.

    Raises InputError where there is no such function.
    """
    if decode is None:
        raise InputError(
            "--task detection needs --decode FILE.py:decode, which makes boxes [N, anchors, 4] and scores "
            "[N, anchors, classes] of the outputs; torchvision's detectors alone bring their own"
        )
    if not is_factory(decode):
        raise InputError(f"--decode must be FILE.py:function or package.module:function, got {decode!r}")
    function = _named(canonical(decode))
    if not callable(function):
        raise InputError(
            f"--decode {decode}: {decode.rpartition(':')[0]} has no function {decode.rpartition(':')[2]!r}"
        )
    return detection(function, suppression, name=decode)


def _named(reference: str) -> object:
    source, _, name = reference.rpartition(":")
    return getattr(import_source(source), name, None)
