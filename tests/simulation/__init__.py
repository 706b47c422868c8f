"""Whole nodes, a chain, an oracle and prices in one process on a clock that jumps; every draw follows from one seed.

`world` what there is, `wire` and `disk` what can fail, `faults` how, `scenarios` what users do, `checks` what must hold
afterwards, `run` one run from its seed, the matrix of all faults, and random runs (``scripts/chaos --matrix``,
``--seeds``).
"""
