"""Errors of a single environment that end a run in a sentence.

Nothing here imports JAX or Gymnasium: worker processes and every caller load this module.
"""

from __future__ import annotations


class EnvironmentFailure(RuntimeError):
    """An environment raised or broke its contract; the message gives the environment's index and step."""


class ContractBreach(Exception):
    """A value that Gymnasium's API or the environment's own spaces do not allow; the message says which."""
