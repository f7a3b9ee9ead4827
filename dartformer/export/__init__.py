"""A model as a folder that runs without dartformer: writing, loading, other formats, the hub."""
