"""Small probes of a model, with sets written for tokenmill: what it finds in long texts, whether texts can give it
orders, what it declines, how sure it is, whether it agrees with itself, how many tokens its answers take."""

from tokenmill.evals.probes.finding import Case, Finding, Options, Table
from tokenmill.evals.probes.kinds import KINDS, run_probes

__all__ = ["KINDS", "Case", "Finding", "Options", "Table", "run_probes"]
