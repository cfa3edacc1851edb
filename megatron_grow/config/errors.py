"""The one exception for a user's mistake."""


class UserError(Exception):
    """Bad input: one line that names the field or file, its value, and what would be accepted.

    The entry scripts print the line without a stack trace and exit with code 2.
    """
