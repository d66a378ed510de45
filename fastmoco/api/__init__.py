"""The functions of `import fastmoco`: pretraining, encoders and their features, from Python."""
