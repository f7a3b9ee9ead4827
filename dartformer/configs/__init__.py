"""Starting configs, one file for each task and size: what `dartformer new` copies.

The folder search_spaces/ of the repository holds the same files.
"""
