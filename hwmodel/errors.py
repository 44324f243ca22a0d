"""The exception tree.

MpsearchError
└── InputError        the user's input is wrong: one line, exit code 2
    └── BudgetError   no configuration fits the budget; carries the smallest cost that can be reached
"""


class MpsearchError(Exception):
    """Base of every error that mpsearch, recon and hwmodel raise on purpose."""


class InputError(MpsearchError, ValueError):
    """Bad input. The message says in one line what was expected, what was seen and what to do."""


class BudgetError(InputError):
    """No configuration meets the budgets."""
