"""What is searched over, and what a search finds."""
