"""`fastmoco map`: a page with a two-dimensional map of features, and the neighbours of each image."""
