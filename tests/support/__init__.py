"""What tests of several folders share: commands, servers, images, tars, shard sets. Fixtures are in conftest.py."""
