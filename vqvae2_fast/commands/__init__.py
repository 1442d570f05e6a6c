"""The commands of `vqvae2-fast`: a file for each, and what they share.

A command is a dataclass whose fields are its options; `vqvae2_fast.cli.COMMANDS` lists them.
common, flags, plan and training are shared; commands do not import one another.
"""
