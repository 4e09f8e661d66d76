"""`dateline demo`: an installation for a while, coverage by several desks at once, readers who check what they get.

`coverage` is the script, `desks` perform it, `readers` follow, `verdict` compares, `summary` prints, `command` joins them.
"""

from services.cli.demo.command import demo

__all__ = ["demo"]
