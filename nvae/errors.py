"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a key, a word on the command line.

    The message is one sentence that says what was found, what is allowed and what to do. Command-line programs
    print it without a traceback and exit with code 2 (see `command_line.run`); a notebook sees an ordinary exception.
    """
