"""How fast something runs: cases, honest timing, rooflines, many ranks, and whether the machine is fit for it."""
