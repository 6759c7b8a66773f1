"""python -m loraline_cli: the same as the command `loraline`."""

from loraline_cli.main import main

main()
