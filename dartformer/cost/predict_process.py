"""The process that compiles blocks and models for a device: see `dartformer.cost.predict`."""

from dartformer.accelerators.compile import serve
from dartformer.cost.predict import answers

if __name__ == "__main__":
    serve(answers)
