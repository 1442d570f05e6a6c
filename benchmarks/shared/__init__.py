"""What the benchmarks import; none of these modules is a command."""
