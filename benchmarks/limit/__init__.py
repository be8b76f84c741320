"""How near a network comes to what is possible on the phantom: ``python -m benchmarks.limit``."""
