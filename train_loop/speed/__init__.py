"""How fast an update is: none of this changes what is computed.

Before the run, `memory` finds the micro-batch that fits, `flops` counts what an update
costs, and `compile` compiles the layers. During it, `profiler` traces some updates.
"""
