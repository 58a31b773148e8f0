"""The ladder: what can be known about GPU kernels on a machine without a GPU.

======  ==========================  ==============================================================
rung    marker                      what it holds up
======  ==========================  ==============================================================
1       kernel_import               kernels import and choose their tiles with no driver
2       kernel_logic                values, against float64, ragged and strided (``interpreter``)
3       kernel_memory               nothing outside the arguments, nothing unwritten (``memory``)
3b      kernel_mutants              seeded bugs that rungs 2 and 3 must catch (``mutants``)
4       kernel_compile              no spills, within the device, matrix instructions (``code``)
5       kernel_contract             ops registered, reached from the public functions (``reach``)
6       ``make kernels``            inner loops against the committed baseline (``report``)
======  ==========================  ==============================================================

``make test`` climbs 1 to 5 in two processes, because Triton decides when it is imported whether it
interprets; ``make kernels`` compiles the full matrix; ``make gpu`` runs the same tests on a GPU.
No rung sees speed, races, barriers or launch limits.
"""
