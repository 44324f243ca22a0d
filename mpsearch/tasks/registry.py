"""Tasks by name, and the user's own."""

from __future__ import annotations

from hwmodel.errors import InputError
from mpsearch.sources.factory import guarded, import_source, is_factory
from mpsearch.tasks.classification import TASK as CLASSIFICATION
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
    if not is_factory(reference):
        raise InputError(f"no task {reference!r}: expected {', '.join(TASKS)}, or FILE.py:task for one of your own")
    source, _, name = reference.rpartition(":")
    named: object = getattr(import_source(source), name, None)
    found: object = guarded(named, f"{reference}: the function raised") if callable(named) else named
    if not isinstance(found, Task):
        seen = "nothing of that name" if found is None else f"a {type(found).__name__}"
        raise InputError(f"{reference} must be a Task, or a function that returns one; got {seen}")
    return found
