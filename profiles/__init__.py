"""Measuring a stone, or any layer: what it costs, what it is invariant to, how fast it runs.

`target.py` says what is measured (a stone by name, a class by ``pkg.mod:Class``), `subject.py` makes it ready to run;
`facts.py` inspects, `timing.py` times, `invariance.py` and `identities.py` check. `probe.py` finds what
`picture.py` draws. The YAML files are bench profiles.
Everything here returns plain records; nothing prints.
"""
