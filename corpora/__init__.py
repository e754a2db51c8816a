"""Where text and tests come from: toyland, downloads, the Pile's shares, the benchmarks' files."""
