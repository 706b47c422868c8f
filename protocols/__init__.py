"""Everything that two peers must agree on, bit for bit, and nothing that touches the world.

No module here imports an event loop, a socket, a clock or a source of randomness: bytes, times and random
bytes are passed in. The node in :mod:`node` runs what is defined here.
"""
