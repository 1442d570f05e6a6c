"""`python -m vqvae2_fast`: the command line, where its script is not on the path."""

# The package, and torch with it, is loaded before this file. So how long OpenMP threads wait, which
# the script sets by the machine's load, stays at its default here.
from vqvae2_fast_command import main

raise SystemExit(main())
