"""`Sharded`: parameters, gradients and moments in equal parts over the processes, by torch's FSDP2.

Models that share parameters (heads and adapters on one backbone, tied embeddings) are one trunk. A pass with gradient
runs as `trunk(call)`: the parameters outside of the blocks are whole until its backward pass ends, those of a block
while that block computes. A pass without gradient is the same and ends with its result (`parts.in_pass`). Every process
must run as many passes as the others (`same_passes`). What cannot know its passes beforehand, sampling above all, runs
inside `parts.gathered`, where the models that it needs are whole and no block waits for another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tiltyard.distributed import processes
from tiltyard.distributed.parts import TRUNK, Before, whole
from tiltyard.distributed.strategy import SavedState, TrainingState, all_rows, load_rows, trained_entries, trained_names
from tiltyard.distributed.unread import read_now, take_hooks_off
from tiltyard.errors import CompositionError, ConfigError, TiltyardError

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Trunk(nn.Module):
    """Models that share parameters, and the units that these are spread by: the blocks, and what is outside of them.

    Attributes:
        whole: True inside `parts.gathered`. parted: False if the whole trunk is one unit. passing: True during a pass.
        before: of each of its modules what FSDP2 changes: its class, its hooks, the names of its attributes.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(modules)
        self.whole, self.parted, self.passing = False, False, False
        self.before: list[Before] = []

    def forward(self, call: Callable[[], Any]) -> Any:
        self.passing = True
        try:
            return call()
        finally:
            self.passing = False

    def check(self, module: nn.Module, _: Any) -> None:
        """A hook before the forward of each model: outside of a pass nothing computes with its parts of parameters."""
        if not (self.whole or self.passing):
            raise CompositionError(
                "a model whose parameters are spread over processes was called outside of a pass",
                where=type(module).__name__,
                expected="per_microbatch(batch, compute, model), where each process runs as many passes as the others",
                fix="name the model there; what cannot know its passes goes inside `gathered` (distributed.parts)",
            )

    def units(self) -> list[FSDPModule]:
        return [part for part in self.modules() if isinstance(part, FSDPModule)]

    def make_whole(self) -> None:
        """Gathers every unit; a later pass leaves it so."""
        for unit in self.units():
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        self.whole = True

    def make_parts(self) -> None:
        """Frees what was gathered."""
        self.whole = False
        for unit in self.units():
            unit.reshard()
            unit.set_reshard_after_forward(not isinstance(unit, Trunk), recurse=False)
        # what passes without gradient left for the prefetching of a backward pass: it differs between processes
        for unit in self.units():
            state: Any = unit._get_fsdp_state()
            state._comm_ctx.post_forward_order.clear()
            if state._fsdp_param_group is not None:
                state._fsdp_param_group._post_forward_indices.clear()


class Sharded:
    """Every process holds an equal part of each parameter, of its gradient and of its moments (FSDP2).

    Args:
        half: blocks are gathered in bfloat16, gradients are summed in float32; None gathers them as they are.
    """

    same_passes = True

    def __init__(self, *, half: bool = False):
        self.half = half
        self._trunks: list[Trunk] = []

    # ------------------------------------------------------------------------------------------- placing and releasing

    def place(self, modules: Sequence[nn.Module], blocks: Iterable[nn.Module]) -> None:
        """Spreads the parameters of these modules; each block is a unit, and what is outside of them is one more.

        Raises:
            ConfigError: parameters that cannot be spread by blocks, or are of several widths.
        """
        inside = {id(block): block for block in blocks}
        mesh = _mesh(next(modules[0].parameters()).device.type)
        check_sums(self, mesh)
        for together in sharing(modules):
            take_hooks_off(together)
            trunk = Trunk(together)
            own = [part for part in trunk.modules() if id(part) in inside]
            check_units(trunk, own)
            trunk.parted = bool(own)
            for part in trunk.modules():
                hooks = {name: dict(part.__dict__[name]) for name in HOOKS if name in part.__dict__}
                trunk.before.append((part, type(part), hooks, set(part.__dict__)))
            for unit in (*own, trunk):
                read_now(unit)  # one block is whole at a time
                self.shard(unit, mesh)
            for module in together:
                module.__dict__[TRUNK] = trunk  # not as a submodule, which would make a circle
                getattr(module, "base_model", module).register_forward_pre_hook(trunk.check)  # `release` removes it
            with torch.no_grad():
                trunk(lambda: None)  # the first pass makes it the root of its blocks
            trunk.make_parts()
            self._trunks.append(trunk)

    def shard(self, unit: nn.Module, mesh: DeviceMesh) -> None:
        """Makes a module one unit, whose parameters are gathered together."""
        types = (torch.bfloat16, torch.float32) if self.half else (None, None)
        policy = MixedPrecisionPolicy(param_dtype=types[0], reduce_dtype=types[1], cast_forward_inputs=False)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the count over all processes already
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other

    @torch.no_grad()
    def release(self) -> None:
        """Makes every model an ordinary one again, with all of its parameters in every process."""
        from torch.distributed._composable_state import _module_state_mapping

        for trunk in self._trunks:
            done: dict[int, nn.Parameter] = {}
            for part in trunk.modules():
                for name, p in part._parameters.items():
                    if isinstance(p, DTensor):
                        if id(p) not in done:
                            done[id(p)] = nn.Parameter(whole(p), requires_grad=p.requires_grad)
                        part._parameters[name] = done[id(p)]
            for module in trunk.models:
                del module.__dict__[TRUNK]
        for part, kind, hooks, keys in (entry for trunk in self._trunks for entry in trunk.before):
            part.__class__ = kind
            _module_state_mapping.pop(part, None)
            for name, before in hooks.items():
                part.__dict__[name].clear()
                part.__dict__[name].update(before)
            for name in set(part.__dict__) - keys:
                if "fsdp" in name or not isinstance(name, str) or name.startswith("__composable"):
                    del part.__dict__[name]
        self._trunks = []

    # ---------------------------------------------------------------------------------------------------------- passes

    def run(self, modules: Sequence[nn.Module], call: Callable[[], Tensor]) -> Tensor:
        """Calls a pass with gradient of these modules, whose result is differentiated before the next pass."""
        trunks = {id(module.__dict__[TRUNK]): module.__dict__[TRUNK] for module in modules}
        for trunk in trunks.values():
            call = _within(trunk, call)
        return call()

    def anchor(self, total: Tensor, columns: Iterable[Tensor]) -> Tensor:
        """The same number, as a function of all columns: so all processes have the gradients of the same parameters."""
        for column in columns:
            if column.requires_grad:
                total = total + 0.0 * torch.nan_to_num(column).sum()
        return total

    # ------------------------------------------------------------------------------------------------------- gradients

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:  # noqa: ARG002 - each backward pass did
        return

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> float:
        return float(_norm(parameters))

    def clip_gradients(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        norm = _norm(parameters)
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    # ----------------------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> TrainingState:
        """This process's rows; what is not spread is in rank 0's."""
        weights, moments = (
            {name: t for name, t in tensors.items() if processes.is_main() or isinstance(t, DTensor)}
            for tensors in (trained_names(modules), trained_entries(optimizer))
        )
        return TrainingState(all_rows(weights), all_rows(moments), files=processes.world())

    def load_state(self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, state: SavedState) -> None:
        load_rows(modules, optimizer, state)


def check_sums(strategy: Sharded, mesh: DeviceMesh) -> None:
    """Trains a small layer one pass whose gradient is known, before anything is trained.

    Raises:
        TiltyardError: the processes' gradients are not summed, or a norm is not that of the whole.
    """
    count = processes.world()
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(1, 2 * count, bias=False).to(mesh.device_type)
    strategy.shard(layer, mesh)
    given = torch.full((1, 1), processes.rank() + 1.0, device=mesh.device_type)
    layer(given.bfloat16() if strategy.half else given).sum().backward()
    total = count * (count + 1) / 2  # of the inputs of all processes
    (weight,) = layer.parameters()
    assert weight.grad is not None
    found = [float(x) for x in whole(weight.grad).flatten()]
    norm, expected = strategy.gradient_norm([weight]), total * (2 * count) ** 0.5
    if found != [total] * (2 * count) or abs(norm - expected) > 1e-4 * expected:
        raise TiltyardError(
            "gradients do not add up over the processes; nothing was trained",
            where="shard",
            got=f"gradient {found}, norm {norm:g}",
            expected=f"{2 * count} times {total:g}, norm {expected:g}",
            fix="this build of torch or its communication library is at fault: take another one, or set shard=false",
        )


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The norm over all processes, of which each has its own part: `float` would read that."""
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def _within(trunk: Trunk, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def all_used() -> Tensor:
        """One unit sums the gradients that there are, which must be those of the same parameters in every process."""
        total = call()
        for p in trunk.parameters():
            if p.requires_grad and torch.is_grad_enabled():
                total = total + 0.0 * p.sum()
        return total

    return lambda: trunk(call if trunk.parted else all_used)


_MESHES: dict[str, DeviceMesh] = {}


def _mesh(device: str) -> DeviceMesh:
    processes.start()
    if device not in _MESHES:
        _MESHES[device] = init_device_mesh(device, (processes.world(),))
    return _MESHES[device]


def sharing(modules: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """The modules, each once, together with those that have a parameter in common with them."""
    found: list[tuple[set[int], list[nn.Module]]] = []
    for module in {id(m): m for m in modules}.values():
        own = {id(p) for p in module.parameters()}
        near = [entry for entry in found if entry[0] & own]
        found = [entry for entry in found if not entry[0] & own]
        found.append((own.union(*(ids for ids, _ in near)), [*(m for _, ms in near for m in ms), module]))
    return [together for _, together in found]


def _shared(why: str, name: str) -> ConfigError:
    return ConfigError(
        f"this model cannot be spread over processes: {why}",
        where="shard",
        got=name,
        expected="blocks with parameters of their own",
        fix="set shard=false",
    )


def check_units(trunk: Trunk, blocks: Sequence[nn.Module]) -> None:
    """Raises a ConfigError for a trunk whose parameters belong to no single unit, or are of several widths."""
    owner: dict[int, nn.Module] = {}
    names = {id(p): name for name, p in trunk.models.named_parameters()}
    for block in blocks:
        for p in block.parameters():
            if owner.setdefault(id(p), block) is not block:
                raise _shared("two of its blocks are one parameter", names[id(p)])
    inside = set(owner)
    held = {id(part) for block in blocks for part in block.modules()}
    for part in trunk.modules():
        for p in part.parameters(recurse=False):
            if id(p) in inside and id(part) not in held:
                raise _shared("a parameter of a block is also used outside of it", names[id(p)])
    widths = sorted({str(p.dtype) for p in trunk.parameters()})
    if len(widths) > 1:
        raise ConfigError(
            "this model cannot be spread over processes: its parameters are of several widths",
            where="shard",
            got=", ".join(widths),
            expected="parameters of one width",
            fix="set quantize=none, or shard=false",
        )
