"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake in input, files or settings; the message names the path or option and the next step.

    The command line prints the message alone and exits with code 2. Anything else that escapes is a bug and
    keeps its traceback.
    """
