"""`python -m postrider` is the command `postrider`."""

from postrider.cli import main

main()
