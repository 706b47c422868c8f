"""What is one node's own business: running tasks, storing events, talking to the chain, the oracle and people."""
