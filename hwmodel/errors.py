"""The exception tree.

MpsearchError
└── InputError        the user's input is wrong: one line, exit code 2
    └── BudgetError   no configuration fits the budget; carries the smallest cost that can be reached
"""

import errno


class MpsearchError(Exception):
    """Base of every error that mpsearch, recon and hwmodel raise on purpose."""


class InputError(MpsearchError, ValueError):
    """Bad input. The message says in one line what was expected, what was seen and what to do."""


class BudgetError(InputError):
    """No configuration meets the budgets."""


# How torch, oneDNN and the system say it in a RuntimeError; a thread needs memory for its stack.
_NO_MEMORY = (
    "alloc", "out of memory", "not enough memory", "could not create a primitive", "could not execute a primitive",
    "can't start new thread", "resource temporarily unavailable",
)  # fmt: skip


def no_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, is that memory could not be had."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
