"""The `tgrpo` command line: each command parses, calls one stage and prints handles."""
