"""`check`: does an attention keep the protocol? One module for each part of the answer."""
