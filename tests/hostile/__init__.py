"""Logs that somebody or something has damaged, and what ``hdactl log inspect|verify|read`` say of them."""
