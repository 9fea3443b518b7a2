"""A placement and a migration policy that run together."""

from dataclasses import dataclass

from penstock.sim.migrations import Lru
from penstock.sim.policy import MigrationPolicy, PlacementPolicy, looks_ahead, looks_back
from penstock.sim.scenario import Passive, Scenario


@dataclass(frozen=True)
class Pair:
    """Two policies by name, and whether moves may only use time that a step has left over."""

    placement: PlacementPolicy
    migration: MigrationPolicy
    placement_name: str
    migration_name: str
    budget_slack: bool = False

    @property
    def ahead(self) -> int:
        """Following steps that the two ask for."""
        return max(looks_ahead(self.placement), looks_ahead(self.migration))

    @property
    def back(self) -> int:
        """Past steps that the two ask for."""
        return max(looks_back(self.placement), looks_back(self.migration))

    def passive(self, scenario: Scenario) -> Passive:
        """What becomes of items just read from external memory: `lru` keeps them whatever the scenario says."""
        return Passive.ALL if isinstance(self.migration, Lru) else scenario.passive
