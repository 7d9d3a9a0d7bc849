"""A real Kubernetes on this machine, for the tests: its own programs, nodes, network and queue.

`python -m tests.cluster up 2` starts one that stays; the tests start one for themselves where none is there.
"""
