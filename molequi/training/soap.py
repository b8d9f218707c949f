"""SOAP, an optimizer that runs Adam in the eigenbasis of Shampoo's preconditioner.

Equivariant networks consist of many small matrices of few shapes. All matrices of one shape are one stack
here, so that a step is a few batched products and not some operations for each parameter.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molequi.errors import ConfigError, TrainingError

FREQUENCY = 5  # steps between two updates of the eigenvectors
LONGEST = 10.0  # step of a component in its eigenbasis, as a multiple of the learning rate
BLOCK = 128  # longest side of a matrix that has one eigenbasis; longer ones are cut into equal blocks


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

    For a matrix W with the gradient G, L and R are running means of G Gᵀ and Gᵀ G. Adam runs on
    Q_Lᵀ G Q_R, where the columns of Q_L and Q_R are their eigenvectors; these are updated by one power
    iteration every `frequency` steps. Weights with more than two dimensions are several matrices. Vectors and
    matrices with one row or column have the steps of Adam. The first step only measures L and R. The step of
    a component is limited to 10 lr.

    Parameters
    ----------
    params : iterable of Parameter or of dict
        Parameters, or groups of them with options of their own.
    lr : float
        Learning rate, above 0.
    betas : tuple of two floats
        Decay of the first moment, and of the second moment, L and R; 0 <= beta < 1.
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        Decoupled decay of the weights.
    frequency : int
        Steps between two updates of the eigenvectors, above 0.

    Raises
    ------
    ConfigError
        For an option out of its range.
    TrainingError
        From the first step, if gradients or their squares are not finite.

    Notes
    -----
    Sides longer than 128 are cut into equal blocks of at most 128, if there are such blocks of at least 32;
    otherwise this side keeps the unit matrix as its basis. A parameter without a gradient is not changed.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.eye(3))
    >>> optimizer = SOAP([weight], lr=0.1)
    >>> for _ in range(200):
    ...     loss = (weight @ torch.tensor([1.0, 2.0, 3.0])).square().sum()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool(loss < 1e-3)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        frequency: int = FREQUENCY,
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, frequency=frequency)
        super().__init__(params, defaults)
        self._stacks: list[list[Stack]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters by their gradients.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients anew.

        Returns
        -------
        float or None
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, stacks in zip(self.param_groups, self._grouped()):
            for stack in stacks:
                state = self.state[stack.parameters[0]]
                if not state:
                    state.update(stack.first_state())
                _step(stack, state, group)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as other optimizers of torch do.

        Parameters
        ----------
        param_group : dict
            ``"params"`` and options.

        Raises
        ------
        ConfigError
            For an option out of its range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._stacks = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, as other optimizers of torch do.

        Parameters
        ----------
        state_dict : dict
            What ``state_dict`` returned.

        Raises
        ------
        ValueError
            If it is the state of another optimizer.
        """
        if not is_soap_state(state_dict):
            raise ValueError("the state of another optimizer; wanted that of SOAP")
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stacks = []  # they hold the parameters of the original

    def stacks(self) -> Iterable["Stack"]:
        """The stacks of all groups."""
        return itertools.chain.from_iterable(self._grouped())

    def _grouped(self) -> list[list["Stack"]]:
        if len(self._stacks) != len(self.param_groups):
            self._stacks = [_stacks(group["params"]) for group in self.param_groups]
        return self._stacks


def _check(options: dict[str, Any]) -> None:
    """Raise ConfigError for options of a wrong type or out of range."""
    checks: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("lr", lambda x: x > 0, "a number above 0"),
        (
            "betas",
            lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x),
            "two numbers from 0 to below 1",
        ),
        ("eps", lambda x: x > 0, "a number above 0"),
        ("weight_decay", lambda x: x >= 0, "a number of at least 0"),
        ("frequency", lambda x: x >= 1 and x == int(x), "a whole number above 0"),
    )
    for name, right, wanted in checks:
        try:
            good = right(options[name])
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ConfigError(f"SOAP: {name}={options[name]!r}; wanted {wanted}")


def is_soap_state(state: dict[str, Any]) -> bool:
    """Whether the state of an optimizer is one of SOAP, or has no moments yet.

    Parameters
    ----------
    state : dict
        What ``state_dict`` returned.
    """
    return all("moment" in one for one in state["state"].values())


@torch.no_grad()
def forget_moments(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Set the moments of parameters to zero, so that they stay as they are without gradients.

    Parameters
    ----------
    optimizer : Optimizer
        Adam, AdamW or SOAP.
    parameters : sequence of Parameter
        Some of its parameters.
    """
    wanted = {id(p) for p in parameters}
    if not isinstance(optimizer, SOAP):
        for p in parameters:
            for value in optimizer.state.get(p, {}).values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.zero_()
        return
    for stack in optimizer.stacks():
        state = optimizer.state[stack.parameters[0]]
        for p, rows in zip(stack.parameters, stack.rows()):
            if id(p) in wanted and state:
                state["moment"][rows] = 0
                state["second"][rows] = 0


@dataclass(frozen=True)
class Layout:
    """How a parameter is cut into matrices of the shape (height, width).

    Parameters
    ----------
    batch : int
        Product of all dimensions but the last two.
    rows, columns : int
        Number of blocks along the last two dimensions.
    height, width : int
        Sides of a block.
    left, right : bool
        Whether these sides have eigenvectors.
    """

    batch: int
    rows: int
    height: int
    columns: int
    width: int
    left: bool
    right: bool

    @classmethod
    def of(cls, shape: Sequence[int]) -> "Layout":
        if len(shape) < 2 or min(shape[-2:]) < 2:
            return cls(1, 1, 1, 1, math.prod(shape), False, False)
        height, width = _block(shape[-2]), _block(shape[-1])
        return cls(
            math.prod(shape[:-2]),
            shape[-2] // (height or shape[-2]),
            height or shape[-2],
            shape[-1] // (width or shape[-1]),
            width or shape[-1],
            height > 0,
            width > 0,
        )

    @property
    def count(self) -> int:
        """Number of matrices."""
        return self.batch * self.rows * self.columns

    @property
    def kind(self) -> tuple[int, ...]:
        """Parameters of the same kind share a stack; all vectors are rows of one kind."""
        return (self.height, self.width) if self.left or self.right else (0, 0)

    def matrices(self, value: Tensor) -> Tensor:
        """(count, height, width)."""
        blocks = value.reshape(self.batch, self.rows, self.height, self.columns, self.width)
        return blocks.transpose(2, 3).reshape(self.count, self.height, self.width)

    def value(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `matrices`."""
        blocks = matrices.reshape(self.batch, self.rows, self.columns, self.height, self.width)
        return blocks.transpose(2, 3).reshape(tuple(shape))


def _block(size: int) -> int:
    """Length of the blocks of a side; 0 if it has no basis."""
    if size <= BLOCK:
        return size
    return next((d for d in range(BLOCK, BLOCK // 4 - 1, -1) if size % d == 0), 0)


@dataclass(frozen=True)
class Stack:
    """Parameters whose matrices have the same shape, or all vectors as one row.

    Parameters
    ----------
    parameters : sequence of Parameter
        The parameters. The first one has the state of the stack.
    layouts : sequence of Layout
        How each of them is cut.
    """

    parameters: Sequence[nn.Parameter]
    layouts: Sequence[Layout]

    @property
    def vectors(self) -> bool:
        return self.layouts[0].kind == (0, 0)

    def sizes(self) -> list[int]:
        """Number of matrices of each parameter, or of its elements."""
        if self.vectors:
            return [p.numel() for p in self.parameters]
        return [layout.count for layout in self.layouts]

    def rows(self) -> list[Any]:
        """What belongs to each parameter in the tensors of the state."""
        sizes = self.sizes()
        return [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes))]

    def gradients(self) -> Tensor:
        """Gradients of all parameters, (count, height, width) or (count,)."""
        parts = []
        for p, layout in zip(self.parameters, self.layouts):
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            parts.append(grad.reshape(-1) if self.vectors else layout.matrices(grad))
        return torch.cat(parts)

    def values(self, stacked: Tensor) -> list[Tensor]:
        """The parts of a stacked tensor in the shapes of the parameters."""
        parts = stacked.split(self.sizes())
        if self.vectors:
            return [part.view_as(p) for part, p in zip(parts, self.parameters)]
        return [layout.value(part, p.shape) for part, layout, p in zip(parts, self.layouts, self.parameters)]

    def first_state(self) -> dict[str, Tensor]:
        """Zeros, and unit matrices for the bases."""
        p, layout = self.parameters[0], self.layouts[0]
        count = sum(self.sizes())
        shape = (count,) if self.vectors else (count, layout.height, layout.width)
        state = {"step": torch.zeros(()), "moment": p.new_zeros(shape), "second": p.new_zeros(shape)}
        for side, wanted, size in (
            ("left", layout.left, layout.height),
            ("right", layout.right, layout.width),
        ):
            if wanted and not self.vectors:
                state[side] = p.new_zeros(count, size, size)
                state[f"{side}_basis"] = torch.eye(size, dtype=p.dtype, device=p.device).repeat(count, 1, 1)
        return state


def _stacks(parameters: Sequence[nn.Parameter]) -> list[Stack]:
    kinds: dict[Any, tuple[list[nn.Parameter], list[Layout]]] = {}
    for p in parameters:
        layout = Layout.of(p.shape)
        found = kinds.setdefault((layout.kind, p.dtype, p.device), ([], []))
        found[0].append(p)
        found[1].append(layout)
    return [Stack(*found) for found in kinds.values()]


def _step(stack: Stack, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One step of one stack."""
    (beta1, beta2), gradient = group["betas"], stack.gradients()
    state["step"] += 1
    number = int(state["step"])
    if number == 1 and not stack.vectors:
        _accumulate(state, gradient, beta2)
        _first_bases(state)
        return
    done = number if stack.vectors else number - 1
    turned = _rotate(state, gradient)
    moment, second = state["moment"], state["second"]
    moment.lerp_(turned, 1 - beta1)
    second.mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    root = (second / (1 - beta2**done)).sqrt_().add_(group["eps"])
    # Adam's steps of a component are at most `lr` if both betas are equal. Here the second moment belongs to
    # the former basis; without a limit, steps in bfloat16 are thousands of times `lr`.
    limit = LONGEST * (1 - beta1**done)
    change = _rotate_back(state, (moment / root).clamp_(-limit, limit))
    changed: list[Tensor] = [p for p in stack.parameters if p.grad is not None]
    steps = [v for v, p in zip(stack.values(change), stack.parameters) if p.grad is not None]
    if changed:
        if group["weight_decay"]:
            torch._foreach_mul_(changed, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(changed, steps, alpha=-group["lr"] / (1 - beta1**done))
    if not stack.vectors:
        _accumulate(state, gradient, beta2)
        if done % group["frequency"] == 0:
            _turn_bases(state)


def _rotate(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Q_Lᵀ x Q_R."""
    if "left_basis" in state:
        x = state["left_basis"].mT @ x
    return x @ state["right_basis"] if "right_basis" in state else x


def _rotate_back(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Q_L x Q_Rᵀ."""
    if "left_basis" in state:
        x = state["left_basis"] @ x
    return x @ state["right_basis"].mT if "right_basis" in state else x


def _accumulate(state: dict[str, Tensor], gradient: Tensor, beta: float) -> None:
    """The running means of G Gᵀ and Gᵀ G."""
    if "left" in state:
        state["left"].baddbmm_(gradient, gradient.mT, beta=beta, alpha=1 - beta)
    if "right" in state:
        state["right"].baddbmm_(gradient.mT, gradient, beta=beta, alpha=1 - beta)


def _first_bases(state: dict[str, Tensor]) -> None:
    """All eigenvectors, of the largest eigenvalue first."""
    for side in ("left", "right"):
        if side in state:
            if not torch.isfinite(state[side]).all():
                raise TrainingError(
                    "SOAP: gradients are not finite, or their squares are not; clip them, or look at the data"
                )
            vectors = torch.linalg.eigh(state[side].double()).eigenvectors.flip(-1)
            state[f"{side}_basis"] = vectors.to(state[side].dtype).contiguous()


def _turn_bases(state: dict[str, Tensor]) -> None:
    """One power iteration of the eigenvectors; the first moment is turned with them."""
    moment = _rotate_back(state, state["moment"])
    for side, dim in (("left", 1), ("right", 2)):
        if side not in state:
            continue
        matrix, basis = state[side], state[f"{side}_basis"]
        image = matrix @ basis
        order = (basis * image).sum(1).argsort(dim=1, descending=True, stable=True)  # by eigenvalue
        image = image.gather(2, order[:, None].expand_as(image))
        index = order[:, :, None] if dim == 1 else order[:, None]
        state["second"] = state["second"].gather(dim, index.expand_as(state["second"]))
        precise = image if image.dtype in (torch.float32, torch.float64) else image.float()
        state[f"{side}_basis"] = torch.linalg.qr(precise).Q.to(image.dtype).contiguous()
    state["moment"] = _rotate(state, moment)
