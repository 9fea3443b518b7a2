"""From a source to an engine: skeleton, pages, core, and the rooms that a placement asks for."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from penstock.engine import recurrent, rotary
from penstock.engine.anatomy import Anatomy, dissect
from penstock.engine.beside import Beside
from penstock.engine.binding import Binding
from penstock.engine.embedding import bind_embeddings
from penstock.engine.engine import Engine
from penstock.engine.footprint import dense_layers, footprint_of
from penstock.engine.host import Host
from penstock.engine.kv_batch import Reach
from penstock.engine.linear import Widening
from penstock.engine.model import Model
from penstock.engine.parking import Parking
from penstock.engine.staging import Stager
from penstock.errors import UserError
from penstock.memory.allocator import HeapWatch
from penstock.memory.clock import Clock
from penstock.memory.device import Device
from penstock.memory.kv import KVStore
from penstock.memory.kv_form import KVForm, KVGroup, KVLayer, kv_form
from penstock.memory.pager import Pager
from penstock.model import gguf, page_cache, random_weights
from penstock.model.conversion import plan_parameters
from penstock.model.layout import Layout, decoder_layers, lay_out
from penstock.model.parameter_source import ParameterSource
from penstock.model.precision import Precision
from penstock.model.safetensors_index import SafetensorsIndex
from penstock.model.skeleton import build_skeleton, decoder_config, materialise_buffers
from penstock.model.source import Source
from penstock.model.stored import stored_sources
from penstock.plan.types import Footprint, Placement
from penstock.quant.grouped import Grouped
from penstock.schedule.scheduler import Scheduler
from penstock.schedule.types import GroupSpec

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Blueprint:
    """A model as pages and numbers, before any weight is read into memory.

    cached_bytes: of the page cache that pages lie in, where there is one; lease: keeps it from being deleted.
    """

    source: Source
    precision: Precision
    skeleton: Any
    anatomy: Anatomy
    sources: Mapping[str, ParameterSource]
    layout: Layout
    groups: tuple[KVGroup, ...]
    kv: KVForm
    cached_bytes: int = 0
    lease: IO[bytes] | None = None

    @property
    def config(self) -> Any:
        """The text decoder's config."""
        return decoder_config(self.source.config)

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was made for, where its config says so."""
        found = getattr(self.config, "max_position_embeddings", None)
        return int(found * rotary.stretch(self.config)) if found else None

    @property
    def specs(self) -> list[GroupSpec]:
        """What the scheduler needs to know of its KV."""
        return [group.spec(self.kv) for group in self.groups]

    @property
    def converted_bytes(self) -> int:
        """Bytes of pages that lie in no file as they run, and are converted whenever they are read."""
        return sum(page.nbytes for page in self.layout.pages if page.extents is None)

    @property
    def packed_bytes(self) -> int:
        """Bytes of pages that hold what penstock packs itself: they run from the page cache alone."""
        packed = (page for page in self.layout.pages if any(Grouped.named(s.dtype) for s in page.slices))
        return sum(page.nbytes for page in packed)

    def footprint(self) -> Footprint:
        """What the rule needs to know of it."""
        return footprint_of(self)


def blueprint(
    source: Source,
    precision: Precision,
    *,
    trust_remote_code: bool = False,
    one_group: bool = False,
    page_bytes: int | None = None,
    sources: Mapping[str, ParameterSource] | None = None,
) -> Blueprint:
    """Build the skeleton, run it dry, find its parameters and lay them out. Reads headers only.

    one_group: treat windowed layers as full ones (a device arena cannot be taken lazily). sources: parameters by name,
    instead of what the source's files hold. Raises UserError for what cannot be run exactly.
    """
    skeleton = build_skeleton(source.config, precision.compute, trust_remote_code=trust_remote_code)
    anatomy = dissect(skeleton, decoder_config(source.config))
    sources = _sources(source, skeleton) if sources is None else sources
    dtypes, packing = (precision.stored, precision.compute), precision.packing
    layout = lay_out(skeleton, anatomy.leaves, sources, *dtypes, packing, page_bytes=page_bytes)
    by_window: dict[int | None, dict[int, KVLayer]] = {}
    for index, layer in sorted(anatomy.kv.items()):
        by_window.setdefault(None if one_group else anatomy.windows[index], {})[index] = layer
    groups = tuple(KVGroup(members, window) for window, members in by_window.items())
    if packing.kv is not None and dense_layers(skeleton):
        kind = decoder_config(source.config).model_type
        raise UserError(
            f"KV of {kind} models is transformed before it is attended to, and is not packed: leave --kv-bits out"
        )
    kv = kv_form(list(anatomy.kv.values()), precision.kv, packing.kv)
    return Blueprint(source, precision, skeleton, anatomy, sources, layout, groups, kv)


def _sources(source: Source, skeleton: Any) -> Mapping[str, ParameterSource]:
    if source.kind == "gguf":
        return gguf.plan_parameters(skeleton, gguf.read_header(source.path))
    if source.kind == "random":
        return random_weights.plan_parameters(skeleton, source.quantized)
    stored = SafetensorsIndex(source.path).tensors
    return plan_parameters(skeleton, stored_sources(stored, source.quantized, source.checkpoint_dtype or "bfloat16"))


def assemble(
    plan: Blueprint,
    placement: Placement,
    device: Device,
    clock: Clock,
    offload_dir: Path | None,
    progress: Progress | None = None,
    heap: HeapWatch | None = None,
) -> Engine:
    """Take the memory that a placement says, read the resident pages and tie everything together.

    Raises UserError where a file cannot be read or the disk has no room; nothing is left open then.
    """
    slots, shares = placement.policy.slots, placement.policy.activations
    convert = partial(page_cache.fill, plan.sources)  # of pages that are nowhere as they run
    with ExitStack() as undo:
        pager = Pager(plan.layout.pages, placement.homes, device, slots, clock, convert)
        undo.callback(pager.close)
        pager.start(progress)
        model = _bound(plan, pager, device, clock)
        rows = placement.policy.rows
        tier = placement.policy.kv_tier(device.compute_tier)
        kv = KVStore(plan.groups, plan.kv, placement.kv, device, clock, offload_dir, rows, tier)
        undo.callback(kv.close)
        scheduler = Scheduler(
            placement.policy,
            kv.specs,
            placement.kv,
            plan.kv.tokens,
            tier,
            chunking=not plan.anatomy.recurrent,
        )
        reach = _reach(placement, model, pager, kv, clock)
        undo.callback(reach.close)
        parks = shares.of(device.compute_tier) < 1
        parking = Parking(shares, plan.skeleton, device, clock, offload_dir) if parks else None
        engine = Engine(model, scheduler, pager, kv, clock, reach, parking, heap)
        undo.pop_all()
    return engine


def _reach(placement: Placement, model: Model, pager: Pager, kv: KVStore, clock: Clock) -> Reach:
    """How attention gets to KV that is not where calls compute."""
    policy = placement.policy
    away = policy.attention not in (None, kv.device.compute_tier)
    stager = Stager(kv, placement.staging, clock, on_host=away) if placement.staging else None
    if policy.cpu_layers:
        layers = decoder_layers(model.module)[: policy.cpu_layers]
        return Reach(stager, host=Host(layers, kv, pager, model.binding, clock))
    return Reach(stager, Beside(kv, clock) if away else None)


def _bound(plan: Blueprint, pager: Pager, device: Device, clock: Clock) -> Model:
    """The skeleton with its core loaded, and every other weight tied to the page that brings it."""
    materialise_buffers(plan.skeleton, device.torch_device)
    _load_core(plan, device.torch_device)
    rotary.take_by_span(plan.skeleton)
    bind_embeddings(plan, pager, device, clock)
    compute = plan.precision.compute
    binding = Binding(plan.skeleton, plan.layout, compute)
    recurrent.take_by_row(plan.skeleton, plan.anatomy.recurrent_modules, plan.config)
    order = tuple(page.index for page in plan.layout.pages if page.kind != "embedding")
    switch = rotary.longrope_switch(plan.config)
    widening, dense = Widening(compute, device.torch_device), dense_layers(plan.skeleton)
    return Model(plan.skeleton, plan.config, binding, widening, order, dense, switch, plan.anatomy.cache_name)


def _load_core(plan: Blueprint, device: torch.device) -> None:
    """Read what stays resident: vectors, small matrices, persistent buffers."""
    compute = plan.precision.compute
    loaded: dict[int, torch.Tensor] = {}
    by_name = dict(plan.skeleton.named_parameters(remove_duplicate=False))
    for name in plan.layout.core:
        skeleton = by_name[name]
        if id(skeleton) not in loaded:
            # a few parameters keep a dtype of their own whatever the model's is (router biases in float32)
            dtype = skeleton.dtype if skeleton.dtype != compute and skeleton.dtype.is_floating_point else compute
            loaded[id(skeleton)] = plan.sources[name].load().to(device, dtype)
        _place(plan.skeleton, name, loaded[id(skeleton)], "_parameters")
    for name, buffer in list(plan.skeleton.named_buffers()):
        if buffer.is_meta and name in plan.sources:
            _place(plan.skeleton, name, plan.sources[name].load().to(device, buffer.dtype), "_buffers")


def _place(model: nn.Module, name: str, tensor: torch.Tensor, kind: str) -> None:
    owner, _, attribute = name.rpartition(".")
    getattr(model.get_submodule(owner), kind)[attribute] = tensor


def check_context(plan: Blueprint, prompt_tokens: int, what: str) -> None:
    """UserError for a prompt that the model's context does not hold with one more token."""
    if plan.context is not None and prompt_tokens >= plan.context:
        raise UserError(
            f"{what} has {prompt_tokens:,} tokens; the model's context holds {plan.context:,}, one of them to generate"
        )
