"""The stones: deep-learning techniques, one file each, named by file and grouped by folder.

Read a stone from top to bottom: the formula, the card (what it says about itself), the class. `card.py` is the
vocabulary of cards, `shared.py` what several cards share, `catalog.py` finds the stones, `plugins.py` those of other
distributions, `stone.py` reads a card. `moments.py` and `positions.py` are the engines under the normalizations of
planes and of positions.
Nothing here imports `profiles` or `stones_cli`, and reading a card never imports torch.
"""
