"""The tests. A package, so that `tests.support` can be imported and `tests/shards` is not mistaken for `shards`."""
