"""Loops over pixels, written in LLVM's terms and compiled for the machine at hand."""
