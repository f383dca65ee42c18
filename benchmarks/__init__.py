"""How fast this package is, and what it costs, beside its peers on one broker and machine in one run: ``make bench``.

Each part is a module of `benchmarks.parts` with a function ``run``: it starts servers and beats, real ones on loopback,
takes its figures from outside where that can be, and returns a `report.Section`. Read `__main__` first.
"""
