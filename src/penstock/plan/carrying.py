"""Seconds of each link in a sweep: pages, KV and residual streams on their way between tiers."""

from collections.abc import Mapping, Sequence

from penstock.machine.machine import LinkName, Machine
from penstock.plan.attending import Attending
from penstock.plan.load import Load
from penstock.plan.policy import Policy, Tier
from penstock.plan.shape import AttentionShape, ModelShape, PageShape

_BELOW: tuple[Tier, ...] = ("cpu", "disk")  # tiers that may be other than the one that computes


class Carrying:
    """What links carry for one model under one policy, as a mapping from lane to seconds."""

    def __init__(self, shape: ModelShape, machine: Machine, policy: Policy, attending: Attending) -> None:
        self._shape, self._policy, self._attending = shape, policy, attending
        self._links, self._compute = machine.links, machine.compute
        self._paths = {(tier, up): self._path(tier, up) for tier in _BELOW for up in (True, False)}
        self._kv_tiers = [tier for tier in _BELOW if policy.kv.of(tier) and tier != self._compute]

    def page(self, page: PageShape, home: Tier, tokens: float) -> Mapping[str, float]:
        """A page on its way to the compute tier; of experts, those that so many tokens are sent to."""
        if home == self._compute:
            return {}
        part = 1.0
        if page.experts:
            part -= (1 - page.experts / self._shape.experts) ** (tokens * self._shape.experts_chosen)
        return self.weights(page.nbytes * part, home)

    def weights(self, nbytes: float, home: Tier) -> Mapping[str, float]:
        """So many bytes of pages on their way to the compute tier."""
        moved: dict[str, float] = {}
        self._add(moved, nbytes, home, up=True)
        return moved

    def kv(self, layer: AttentionShape, loads: Sequence[Load]) -> Mapping[str, float]:
        """KV of one layer that is read from, and written to, tiers other than where it is attended to."""
        moved: dict[str, float] = {}
        if not self._kv_tiers:
            return moved
        past_bytes = self._attending.past_bytes(layer, loads)
        spans = [s for load in loads for s in load.spans]
        tokens = sum(s.number * s.count for s in spans)
        new_bytes = tokens * layer.kv_bytes
        if self._attending.wholly:
            model, on_disk = self._shape.footprint, self._policy.kv.disk
            self._add(moved, tokens * (model.query_bytes + model.key_bytes), "cpu", up=False)
            self._add(moved, tokens * model.found_bytes, "cpu", up=True)
            if on_disk:
                moved["cpu→disk"] = self._links["cpu→disk"].kv_seconds(on_disk * new_bytes)
                moved["disk→cpu"] = self._links["disk→cpu"].kv_seconds(on_disk * past_bytes)
            return moved
        for tier in self._kv_tiers:
            share = self._policy.kv.of(tier)
            self._add(moved, share * new_bytes, tier, up=False, kv=True)
            if self._attending.away:
                if tier == "disk":
                    read_s = self._links["disk→cpu"].kv_seconds(share * past_bytes)
                    moved["disk→cpu"] = moved.get("disk→cpu", 0.0) + read_s
                # queries go down and what they found comes up
                asking = share * sum(s.number * s.count for s in spans if s.first > 0)
                self._add(moved, asking * self._shape.footprint.query_bytes, "cpu", up=False)
                self._add(moved, asking * self._shape.footprint.answer_bytes, "cpu", up=True)
            else:
                self._add(moved, share * past_bytes, tier, up=True, kv=True)
        return moved

    def activations(self, tokens: float) -> Mapping[str, float]:
        """Residual streams of so many tokens that are carried away and back between two layers."""
        moved: dict[str, float] = {}
        for tier in _BELOW:
            share = self._policy.activations.of(tier)
            if share and tier != self._compute:
                nbytes = share * tokens * self._shape.hidden_bytes
                self._add(moved, nbytes, tier, up=False)
                self._add(moved, nbytes, tier, up=True)
        return moved

    def _path(self, tier: Tier, up: bool) -> Sequence[LinkName]:
        """Links between a tier and the compute tier, up to it or down from it."""
        path: list[LinkName] = []
        if tier == "disk":
            path.append("disk→cpu" if up else "cpu→disk")
        if self._compute == "gpu":
            path.append("cpu→gpu" if up else "gpu→cpu")
        return path

    def _add(self, moved: dict[str, float], nbytes: float, tier: Tier, *, up: bool, kv: bool = False) -> None:
        """Count bytes between a tier and the compute tier; kv: they are KV blocks."""
        if nbytes <= 0:
            return
        for name in self._paths[tier, up]:
            link = self._links[name]
            moved[name] = moved.get(name, 0.0) + (link.kv_seconds(nbytes) if kv else link.seconds(nbytes))
