"""The commands hdad and hdactl: parse, call, print, exit status."""
