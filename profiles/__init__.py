"""Measuring a stone, or any layer: what it costs, what it is invariant to, how fast it runs.

`target.py` says what is measured (a stone by name, a class by ``pkg.mod:Class``), `subject.py` makes it ready to run.
The rooms: `counting` what it costs (`facts.py` inspects), `speed` how fast it runs (`bench.py`, `timing.py`), `checks`
whether it keeps its promises, `pictures` what is drawn of it, `races` of optimizers, `reports`; `schemas` says what
their records look like. The YAML files are profiles, lists of all of these, which `run.py` runs.
Everything here returns plain records; nothing prints.
"""
