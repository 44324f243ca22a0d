"""Fitting one unit after another: targets, starts, optimisation."""
