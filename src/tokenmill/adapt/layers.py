"""The modules that take a layer's place: the layer itself, and named adapters beside it.

An adapter is a small module with three hooks: what it does to the input, what it does to the output, and how it is
folded into a weight. Axes: T tokens · I in · O out · R rank · V vocabulary · N trained rows · C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenmill.adapt.switch import Adapters
from tokenmill.core.errors import ConfigError
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear, LinearLayer
from tokenmill.ops.linear import linear
from tokenmill.ops.registry import Traced


class Adapter(nn.Module):
    """What changes a linear layer."""

    def before(self, x: Tensor) -> Tensor:
        """What the layer is given instead of ``x`` [T, I]."""
        return x

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        """What is passed on instead of ``y`` [T, O]; ``plain`` is what the base said to ``x`` before other adapters."""
        del x, plain, base
        return y

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        """The float32 weight and bias that do the same; ``base_OI`` is the weight without any adapter.

        ConfigError where no matrix does it.
        """
        raise NotImplementedError

    def merged(self, weight_OI: Tensor, base_OI: Tensor) -> Tensor | None:
        """The weight that does the same, in the dtype of ``weight_OI``, where only the weight changes; else None."""
        del weight_OI, base_OI
        return None


class AdaptedLinear(LinearLayer):
    """A frozen linear layer, plain or quantised, with adapters."""

    def __init__(self, base: LinearLayer, switch: Adapters) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.in_features, self.out_features = base.in_features, base.out_features
        self.adapters = nn.ModuleDict()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The base's."""
        return self.base.bias

    def on(self) -> list[Adapter]:
        """The adapters that take part in this call."""
        return [self.adapters[name] for name in self.switch.active if name in self.adapters]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        adapters = self.on()
        if isinstance(x, Traced) and adapters and self.merged() is not None:  # one product instead of three
            product: Tensor = x.recorder.computed_linear(x, self.merged, self.base.bias)
            return product
        for adapter in adapters:
            x = adapter.before(x)
        plain = y = self.base(x)
        for adapter in adapters:
            y = adapter.after(x, y, plain, self.base)
        return y

    @torch.no_grad()
    def merged(self) -> Tensor | None:
        """A plain base's weight with the active adapters in it, [O, I] in its dtype; None where that is not all."""
        if type(self.base) is not Linear:
            return None
        weight_OI: Tensor | None = self.base.weight
        for adapter in self.on():
            weight_OI = None if weight_OI is None else adapter.merged(weight_OI, self.base.weight)
        return weight_OI

    def dense(self) -> Tensor:
        return self.folded()[0].to(self.base.dense().dtype)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the active adapters in them, float32."""
        return self.folding()

    def folding(self) -> tuple[Tensor, Tensor | None]:
        """As :meth:`folded`, with gradients to the adapters."""
        base_OI = self.base.dense().float()
        weight_OI, bias_O = base_OI, None if self.base.bias is None else self.base.bias.float()
        for adapter in self.on():
            weight_OI, bias_O = adapter.fold(weight_OI, bias_O, base_OI)
        return weight_OI, bias_O


class AdaptedEmbedding(nn.Module):
    """A frozen embedding of which some rows, or a copy as a whole, are trained. A tied head sees them too."""

    def __init__(self, base: Embedding, switch: Adapters) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.adapters = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """[V, C] with the active adapters' rows in it."""
        weight_VC: Tensor = self.base.weight
        for name in self.switch.active:
            if name in self.adapters:
                part = self.adapters[name]
                assert isinstance(part, Rows | Whole)
                weight_VC = part.table(weight_VC)
        return weight_VC

    def scores(self, hidden_TC: Tensor) -> Tensor:
        """As :meth:`Embedding.scores`."""
        return linear(hidden_TC, self.weight)

    def forward(self, indices: Tensor) -> Tensor:
        rows: Tensor = self.base(indices)
        for name in self.switch.active:
            if name in self.adapters:
                part = self.adapters[name]
                assert isinstance(part, Rows | Whole)
                rows = part.look_up(indices, rows)
        return rows


class Rows(Adapter):
    """New tokens trained alone: their rows of an embedding, or of an output matrix (PEFT's trainable tokens)."""

    def __init__(self, indices: Tensor, values_NC: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices, persistent=False)
        self.values = nn.Parameter(values_NC)
        self.indices: Tensor

    def table(self, weight_VC: Tensor) -> Tensor:
        """The whole table with these rows in it."""
        return weight_VC.index_copy(0, self.indices, self.values.to(weight_VC.dtype))

    def look_up(self, indices: Tensor, rows: Tensor) -> Tensor:
        """``rows`` of the base with those of the trained tokens replaced; the table is not copied."""
        found = indices.unsqueeze(-1) == self.indices
        chosen = F.embedding(found.int().argmax(-1), self.values).to(rows.dtype)
        return torch.where(found.any(-1, keepdim=True), chosen, rows)

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        del plain
        scores_TN = F.linear(x, self.values.to(x.dtype))
        if base.bias is not None:
            scores_TN = scores_TN + base.bias[self.indices].to(x.dtype)
        return y.index_copy(-1, self.indices, scores_TN)

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        del base_OI
        return self.table(weight_OI), bias_O


class Whole(Adapter):
    """A trained copy of a whole linear layer or embedding (PEFT's ``modules_to_save``)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def table(self, weight_VC: Tensor) -> Tensor:
        """The copy instead of the table."""
        return self.weight.to(weight_VC.dtype)

    def look_up(self, indices: Tensor, rows: Tensor) -> Tensor:
        """Rows of the copy."""
        return F.embedding(indices, self.weight).to(rows.dtype)

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        del y, plain, base
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        del weight_OI, base_OI, bias_O
        return self.weight.float(), None if self.bias is None else self.bias.float()


class IA3(Adapter):
    """(IA)³ (Liu et al. 2022): a learned factor a feature, on a feed-forward layer's input or another's output."""

    def __init__(self, factor: Tensor, *, on_input: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)
        self.on_input = on_input

    def before(self, x: Tensor) -> Tensor:
        return (x * self.factor).to(x.dtype) if self.on_input else x

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        del x, plain, base
        return y if self.on_input else (y * self.factor).to(y.dtype)

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        del base_OI
        if self.on_input:
            return weight_OI * self.factor.float(), bias_O
        factor_O = self.factor.float()
        return weight_OI * factor_O[:, None], None if bias_O is None else bias_O * factor_O


class Bottleneck(Adapter):
    """A narrow feed-forward layer behind a sublayer, added to what it says (Houlsby et al. 2019, Pfeiffer et al. 2021).

    Its second matrix is zero at first, so that training starts from the base model.
    """

    def __init__(self, down_RO: Tensor, up_OR: Tensor, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down_RO), nn.Parameter(up_OR)
        self.down_bias = nn.Parameter(down_RO.new_zeros(down_RO.shape[0]))
        self.up_bias = nn.Parameter(up_OR.new_zeros(up_OR.shape[0]))
        self.dropout = dropout

    def after(self, x: Tensor, y: Tensor, plain: Tensor, base: LinearLayer) -> Tensor:
        del x, plain, base
        narrow_TR = F.relu(F.linear(y, self.down.to(y.dtype), self.down_bias.to(y.dtype)))
        narrow_TR = F.dropout(narrow_TR, self.dropout, self.training)
        return y + F.linear(narrow_TR, self.up.to(y.dtype), self.up_bias.to(y.dtype))

    def fold(self, weight_OI: Tensor, bias_O: Tensor | None, base_OI: Tensor) -> tuple[Tensor, Tensor | None]:
        raise ConfigError(
            "bottleneck adapters cannot be merged: they compute something that no weight of the base computes; keep "
            "the adapter beside the model"
        )


class AddProduct(torch.autograd.Function):
    """``y + scale * (x A^T) B^T``, A and B in their own dtype, the product in that of y.

    Keeps x, A, B and x A^T for the backward pass: nothing of the size of y, and no copy of x in the adapter's dtype
    (PEFT casts x to float32, which is most of what its LoRA costs in memory over a bfloat16 base).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
        h = F.linear(x, a_RI.to(x.dtype))
        ctx.save_for_backward(x, h, a_RI, b_OR)
        ctx.scale = scale
        flat = torch.addmm(y.flatten(0, -2), h.flatten(0, -2), b_OR.to(y.dtype).t(), alpha=scale)
        return flat.view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,) = grads
        x, h, a_RI, b_OR = ctx.saved_tensors
        grad_h = (grad_y @ b_OR.to(grad_y.dtype)).mul_(ctx.scale)
        grad_x = grad_h @ a_RI.to(grad_y.dtype) if ctx.needs_input_grad[1] else None
        grad_a = (grad_h.flatten(0, -2).t() @ x.flatten(0, -2)).to(a_RI.dtype)
        grad_b = (grad_y.flatten(0, -2).t() @ h.flatten(0, -2)).to(b_OR.dtype).mul_(ctx.scale)
        return grad_y if ctx.needs_input_grad[0] else None, grad_x, grad_a, grad_b, None
