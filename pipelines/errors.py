"""What a user can mend."""


class PipelineError(ValueError):
    """A pipeline that cannot be built or go on as asked for. The message names the value and the remedy."""
