"""The network, and what trains it."""
