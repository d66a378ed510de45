"""`fastmoco doctor`: what this machine has, what stops or slows training on it, and the remedy for each."""
