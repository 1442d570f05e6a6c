"""`python -m vqvae2_fast`: the command line, where its script is not on the path."""

from vqvae2_fast.cli import main

raise SystemExit(main())
