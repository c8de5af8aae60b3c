"""What an adversary does to the answers before it trains on them. One file and one YAML a recovery."""

from mad.recoveries.base import AsAnswered, Recovery

__all__ = ["AsAnswered", "Recovery"]
