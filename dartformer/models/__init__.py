"""The Transformer and the supernet, and what is read off them."""
