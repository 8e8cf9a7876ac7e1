"""`python -m lalref`: the command line, for where the script `lalref` is not on the path."""

from lalref.cli import main

main(prog_name="lalref")
