"""The tests. A package so that `tests.support` can be imported; the folders of test modules are none.

A `tests/shards/__init__.py` would make pytest import tests/shards as `shards`, in place of the real package.
"""
