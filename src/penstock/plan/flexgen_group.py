"""FlexGen's equations for one group of rows: sizes, what each lane carries, and the largest operator's working set.

Sheng et al., ICML 2023, section 4 and appendix A.3; ``plan.flexgen`` says what is wrong with them.
"""

from dataclasses import dataclass
from typing import Literal

from penstock.errors import UserError
from penstock.machine.machine import LinkName, Machine
from penstock.plan.linear import Item, Lane, Place, Program
from penstock.plan.policy import TIERS, Shares, Tier

PREFILL_TOKENS = 4096  # of a call whose rate stands for every prefill
DECODE_ROWS = 64  # whose rate stands for every decode: about what the paper's policies have in a batch

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class OptShape:
    """An OPT-like model: all layers alike, every head with keys and values of its own, two MLP matrices.

    element_bytes: of weights, KV and activations, where a policy does not pack them. arithmetic: the key of
    ``Processor.products`` that gives its rates; any where there is one only.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    element_bytes: int = 2
    arithmetic: str = "float16"

    @property
    def layer_bytes(self) -> int:
        """Weights of one layer: 8·hidden² + 4·hidden·ffn at two bytes."""
        return self.element_bytes * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in one layer: 4·hidden at two bytes."""
        return 2 * self.element_bytes * self.hidden

    @property
    def hidden_bytes(self) -> int:
        """Activations of one token: 2·hidden at two bytes."""
        return self.element_bytes * self.hidden


@dataclass(frozen=True, slots=True)
class FlexGenPolicy:
    """Where bytes live, and rows: batch_size · num_batches. weight_bits, kv_bits: None as the shape's elements are."""

    weights: Shares
    kv: Shares
    activations: Shares
    batch_size: int
    num_batches: int
    cpu_attention: bool = True
    weight_bits: int | None = None
    kv_bits: int | None = None

    @property
    def rows(self) -> int:
        """Rows of a group."""
        return self.batch_size * self.num_batches


@dataclass(frozen=True, slots=True)
class Group:
    """One group of rows on one machine. Of the policy, rows and bits count here, not where bytes live."""

    shape: OptShape
    machine: Machine
    policy: FlexGenPolicy
    prompt: int
    generate: int

    def program(self) -> Program:
        """The linear program whose price is FlexGen's prediction."""
        if "gpu" not in self.machine.processors:
            raise UserError(f"{self.machine.name} has no gpu: FlexGen's model computes on one; take the default model")
        sizes = self._layer_sizes
        tiers = tuple(tier for tier in TIERS if tier in self.machine.memory)
        slots = round(2 * sizes.weights)
        streams: dict[tuple[Tier, Tier], int] = {("cpu", "gpu"): slots, ("disk", "gpu"): slots, ("disk", "cpu"): slots}
        layers = self.shape.layers
        longest = self.prompt + self.generate
        items = {
            "weights": Item(round(layers * sizes.weights), tiers, streams),
            "kv": Item(round(layers * sizes.token_kv * longest), tiers),
            "activations": Item(round(self.prompt * sizes.token_hidden), tiers),
        }
        capacity = dict(self.machine.memory)
        capacity["gpu"] -= self.working_bytes
        lanes = {f"prefill {name}": lane for name, lane in self._prefill().items()}
        lanes |= {f"decode {name}": lane for name, lane in self._decode().items()}
        times = {"prefill": float(layers), "decode": float(layers * (self.generate - 1))}
        return Program(items, capacity, lanes, times)

    @property
    def working_bytes(self) -> int:
        """What the largest operator of one batch holds on the gpu: projections, attention with its scores, or MLP.

        Activations of the batch that is computed are counted here, not as something that streams.
        """
        return max(self._working(self.prompt, self.prompt), self._working(1, self.prompt + self.generate))

    def _working(self, queries: int, keys: int) -> int:
        shape = self.shape
        projections = 4 * queries * shape.hidden
        attention = queries * shape.hidden + keys * shape.hidden + shape.heads * queries * keys
        mlp = queries * (shape.hidden + shape.ffn)
        return shape.element_bytes * self.policy.batch_size * max(projections, attention, mlp)

    @property
    def _layer_sizes(self) -> "_LayerSizes":
        rows, bits = self.policy.rows, 8 * self.shape.element_bytes
        return _LayerSizes(
            weights=self.shape.layer_bytes * (self.policy.weight_bits or bits) / bits,
            token_kv=self.shape.kv_bytes * rows * (self.policy.kv_bits or bits) / bits,
            token_hidden=self.shape.hidden_bytes * rows,
        )

    def _prefill(self) -> dict[str, Lane]:
        """Lanes of one layer: all of its weights in, all KV and activations of the prompts out."""
        sizes = self._layer_sizes
        hidden = self.prompt * sizes.token_hidden
        written = (self.prompt + 1) * sizes.token_kv
        rows, s, h1, h2 = self.policy.rows, self.prompt, self.shape.hidden, self.shape.ffn
        products = rows * (8 * s * h1**2 + 4 * s * h1 * h2) / self._products_rate(PREFILL_TOKENS)
        attention = 4 * rows * s**2 * h1 / self._attention_rate("gpu", PREFILL_TOKENS)
        return {
            "cpu→gpu": self._link("cpu→gpu", "prefill", weights=sizes.weights, activations=hidden),
            "gpu→cpu": self._link("gpu→cpu", "prefill", kv=written, activations=hidden),
            "disk→cpu": self._link("disk→cpu", "prefill", weights=sizes.weights, activations=hidden),
            "cpu→disk": self._link("cpu→disk", "prefill", kv=written, activations=hidden),
            "compute": Lane(products + attention, {}, "prefill"),
        }

    def _decode(self) -> dict[str, Lane]:
        """Lanes of one layer for one token of every row, at the mean length of KV."""
        sizes = self._layer_sizes
        mean = self.prompt + self.generate / 2
        read, hidden = mean * sizes.token_kv, sizes.token_hidden
        rows, h1, h2 = self.policy.rows, self.shape.hidden, self.shape.ffn
        products = rows * (8 * h1**2 + 4 * h1 * h2) / self._products_rate(DECODE_ROWS)
        attention = 4 * rows * mean * h1
        beside: Tier = "cpu" if self.policy.cpu_attention else "gpu"
        attends: dict[Place, float] = {
            ("kv", "gpu"): attention / self._attention_rate("gpu", 1),
            ("kv", "cpu"): attention / self._attention_rate(beside, 1),
            ("kv", "disk"): attention / self._attention_rate(beside, 1),
        }
        fetched = 0.0 if self.policy.cpu_attention else read
        return {
            "cpu→gpu": self._link("cpu→gpu", "decode", weights=sizes.weights, kv=fetched, activations=hidden),
            "gpu→cpu": self._link("gpu→cpu", "decode", activations=hidden),
            "disk→cpu": self._link("disk→cpu", "decode", weights=sizes.weights, kv=read, activations=hidden),
            "cpu→disk": self._link("cpu→disk", "decode", kv=sizes.token_kv, activations=hidden),
            "compute": Lane(products, attends, "decode"),
        }

    def _link(self, name: LinkName, phase: Phase, **nbytes: float) -> Lane:
        """A lane that carries so many bytes of each item that does not rest this side of it."""
        if name not in self.machine.links:
            return Lane(0.0, {}, phase)
        bytes_per_s = self.machine.links[name].bytes_per_s
        beyond: tuple[Tier, ...] = ("disk",) if "disk" in name else ("cpu", "disk")
        shares: dict[Place, float] = {
            (item, tier): moved / bytes_per_s for item, moved in nbytes.items() for tier in beyond
        }
        return Lane(0.0, shares, phase)

    def _products_rate(self, tokens: int) -> float:
        """FLOP/s of a linear layer on the gpu."""
        products = self.machine.processors["gpu"].products
        if self.shape.arithmetic in products:
            return products[self.shape.arithmetic].at(tokens)
        if len(products) == 1:
            return next(iter(products.values())).at(tokens)
        raise UserError(
            f"{self.machine.name} has no rate for products in {self.shape.arithmetic}: it has {', '.join(products)}"
        )

    def _attention_rate(self, place: Tier, queries: int) -> float:
        """FLOP/s of attention, which is no faster than keys and values are read: for each of their elements, each
        query makes two FLOP."""
        if place not in self.machine.processors:
            raise UserError(f"{self.machine.name} has no {place} that computes attention: let it run on the gpu")
        processor = self.machine.processors[place]
        reading = processor.kv_bytes_per_s * 2 * queries / self.shape.element_bytes
        return min(processor.attention.at(queries), reading)


@dataclass(frozen=True, slots=True)
class _LayerSizes:
    """Bytes of one layer as they are stored and moved: its weights; KV, and activations, of one token of every row."""

    weights: float
    token_kv: float
    token_hidden: int
