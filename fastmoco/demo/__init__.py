"""`fastmoco demo`: generate or take images, pack, train, probe and write a report."""
