"""Faults in running nodes: real processes over the real HTTP API, a service or its outside world struck in each.

`injection` is what `node` puts around the services of a process, `proxies` are the way to the outside world,
`business` is two nodes that trade meanwhile, and `matrix` strikes.
"""
