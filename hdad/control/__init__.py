"""The control socket: JSON-RPC 2.0, one message a line, and who may say what."""
