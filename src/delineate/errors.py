"""What can go wrong at the door: one class a concept, one line a message, one exit code each.

A message says what must hold, what was given, and what to do. The command line prints it without a traceback
and ends with the class's `exit_code`; `delineate --help` lists the codes.
"""


class DelineateError(Exception):
    """A problem the user can mend. Anything else that escapes is a bug of ours."""

    exit_code = 2


class ScanError(DelineateError):
    """An image or label file cannot be read safely, or its geometry cannot be trusted."""

    exit_code = 3


class PromptError(DelineateError):
    """A prompt names nothing that the model knows."""

    exit_code = 4


class MisfitError(DelineateError):
    """A prompt does not fit the scan: it was not learnt in such scans."""

    exit_code = 11


class DatasetError(DelineateError):
    """A dataset folder is not laid out as it says it is."""

    exit_code = 5


class ModelError(DelineateError):
    """A model folder is missing, damaged or of another kind."""

    exit_code = 6


class BusyError(DelineateError):
    """Another command is at work in the same place."""

    exit_code = 9


class OutputError(DelineateError):
    """Nothing can be written where it was asked for."""

    exit_code = 10
