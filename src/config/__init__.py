"""The configuration: its keys, its checks, how it is composed and restored."""
