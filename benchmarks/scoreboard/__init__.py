"""How well the diagnosis does on synthetic runs with known truth; see ``benchmarks.diagnosis``."""
