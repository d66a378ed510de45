"""`fastmoco embed`: features of all images of a set, in files that other programs read."""
