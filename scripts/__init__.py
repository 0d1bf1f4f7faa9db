"""Benchmarks, pictures and reports: small programs with --help."""
