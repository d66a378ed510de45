"""Finding duplicates before packing: each image is read once, compared, and the copies to leave out are listed."""
