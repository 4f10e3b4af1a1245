"""What a run with a cache will take, told before it is run."""

from lensbridge.plans.plan import Kind, Plan, PlannedValue

__all__ = ["Kind", "Plan", "PlannedValue"]
