"""The reference of a policy: the policy as it began, which its divergence is measured from.

With an adapter it is the same model with the adapter switched off. Without one the weights as they began have to be
somewhere: they are loaded a second time, when a rollout is first compared with them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tokenmill.adapt import switch_of
from tokenmill.core.device import pick_device, pick_dtype
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.store import Store
from tokenmill.train.plan import Plan


class PolicyReference:
    """``with reference as model:`` the model computes what the policy computed before it was trained."""

    def __init__(self, plan: Plan, model: Model, store: Store | None = None) -> None:
        self.recipe, self.policy, self.store = plan.recipe, model, store
        self._other: Model | None = None
        self._open = ExitStack()

    def __enter__(self) -> Model:
        if self.recipe.adapter is not None:
            self._open.enter_context(switch_of(self.policy).off())
            return self.policy
        if self._other is None:
            assert self.recipe.model is not None
            device = pick_device(self.recipe.device)
            dtype = pick_dtype(self.recipe.dtype, device, None, 0)
            self._other = load_model(self.recipe.model, device=device, dtype=dtype, store=self.store)
        return self._other

    def __exit__(self, *error: Any) -> None:
        self._open.close()
