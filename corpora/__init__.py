"""Where text and tests come from: toyland, downloads, samples of the Pile, the benchmarks' files."""
