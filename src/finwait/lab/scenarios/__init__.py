"""One scenario per module, named for the rule that must see it.

Each module has a constant ``SCENARIO``. `finwait.lab.scenario.scenarios` finds it there; nothing is
registered by hand.
"""
