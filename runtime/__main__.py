"""`python -m diffseg` runs the command line, like `diffseg`."""

from diffseg.cli.app import main

main()
